"""What every command that measures leaves behind: its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.cli.output import Output
from secateur.settings import Settings

PARTS = ("model", "other", "others")


def leave_record(
    output: Output, verb: str, settings: Settings, result: Mapping[str, Any], *, run_dir: Path | None = None,
    directory: Path | None = None,
) -> None:  # fmt: skip
    """Write the record of a command under `run_dir`, or in a `directory` of the command's own, and say where."""
    from secateur.recipes.recording import leave
    from secateur.records import Record
    from secateur.reporting.command import command, portable

    given = settings.model_dump(mode="json", exclude_defaults=True)
    record = Record.now(
        verb, device=getattr(settings, "device", "cpu"), command=command(portable(given), verb), settings=portable(settings.to_json()),
        result=portable(result), models=_models(settings, result),
    )  # fmt: skip
    leave(record, run_dir, output.reporter, directory=directory)


def _models(settings: Settings, result: Mapping[str, Any]) -> dict[str, Any]:
    """The models of a command: those that its result lists, else those that were asked for."""
    from secateur.records import Model, identity
    from secateur.reporting.command import named

    rows = result.get("models")
    listed = {row["model"]: row["path"] for row in rows if "path" in row} if isinstance(rows, list) else {}
    asked = {part: spec for part in PARTS if isinstance(spec := getattr(settings, part, None), str)}
    probed = _probed(settings)
    found = {}
    for part, spec in (listed or asked).items():
        how = probed if part == "dynamic" or not listed else None
        found[part] = Model(name=named(str(spec)), identity=identity(spec), probed=how)
    return found


def _probed(settings: Settings) -> str | None:
    from secateur.reporting.command import named

    small, dynamic = getattr(settings, "small", None), getattr(settings, "dynamic", None)
    if small is not None:
        return f"small {named(small)}"
    how = next((f" {way}" for way in ("paper", "griffin") if getattr(settings, way, False)), "")
    return None if dynamic is None else f"dynamic {dynamic:g}{how}"
