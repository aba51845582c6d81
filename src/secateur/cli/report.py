"""`secateur report`: what runs found, as one page."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from secateur.cli.options import Json
from secateur.cli.output import Output

Runs = Annotated[
    list[Path],
    Argument(
        metavar="RUN...", help="Run directories, their records, pruned models, or directories of runs.", show_default=False
    ),
]
Out = Annotated[Path, Option(help="HTML file to write.")]
Force = Annotated[bool, Option("--force", help="Replace a file that is no report.")]


def report(runs: Runs, out: Out = Path("report.html"), force: Force = False, json: Json = False) -> None:
    """Put runs together into one HTML page that needs nothing but a browser: several pruned models become a comparison."""
    with Output(json) as output:
        from secateur.records import read_runs
        from secateur.reporting.facts import check
        from secateur.reporting.page import html_report
        from secateur.reporting.writing import write_report

        records = read_runs(runs, output.reporter.warn, check)
        size = write_report(html_report(records), out, force=force)
        output.show("Report", {"report": str(out), "bytes": size, "runs": len(records)})
