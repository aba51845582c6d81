"""Leaving a record: where, and what is said of it."""

from pathlib import Path

from secateur.records import Record
from secateur.reporter import Reporter

RUNS = Path(".secateur")
"""Under the working directory, where nothing else is asked for."""


def leave(record: Record, parent: Path | None, report: Reporter, *, directory: Path | None = None) -> Path | None:
    """Write the record and say where. A place that cannot be written costs a warning: what was measured is not lost by it."""
    try:
        path = record.leave_in(directory) if directory is not None else record.leave(parent or RUNS)
    except OSError as error:
        where = directory or parent or RUNS
        report.warn(f"the record of this run could not be written to {str(where)!r}: {error.strerror or error}")
        return None
    here = Path.cwd()
    report.say(f"record: {path.relative_to(here) if path.is_relative_to(here) else path}")
    return path
