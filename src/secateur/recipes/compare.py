"""Which method is best? Every method at every ratio and seed, each a whole pruning on the same texts.

All in one process; what is finished is remembered, and so are the statistics that methods share.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.errors import UserError
from secateur.recipes.cells import cells_of, hardware, make_out, pruning, remembered
from secateur.recipes.job import Job, prepare
from secateur.recipes.prune import prune
from secateur.recipes.result import PruneResult
from secateur.reporter import Batch, Reporter
from secateur.reporting.card import command, portable
from secateur.runs import RunDirectory, environment
from secateur.settings import PruneSettings
from secateur.trials import CompareSettings, parse_entry

PROBE = 0.01  # a ratio that every method can meet: what refuses it would refuse any
FOUND = (
    "method", "compensate", "allocation", "ratio_reached", "parameters_before", "parameters_after", "perplexity_before",
    "perplexity_after", "evaluation", "calibration", "overlap", "verified", "seconds",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of `--methods` at one ratio under one seed. All but these three are None where it was refused."""

    entry: str
    ratio: float
    seed: int
    ratio_reached: float | None = None
    """Of the parameters of all blocks."""
    perplexity: float | None = None
    parameters: int | None = None
    compensate: str | None = None
    allocation: str | None = None
    verified: float | None = None
    seconds: float | None = None
    """Of the whole pruning. Statistics that methods share are in the seconds of the one that needed them first."""
    environment: int | None = None
    """Which of the comparison's environments it was run in."""
    refused: str | None = None
    """Why there is nothing here."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    model: str
    fingerprint: str
    """Of the model's files."""
    command: str
    perplexity_before: float
    parameters_before: int
    evaluation: str
    calibration: dict[str, str]
    """Seed -> how its blocks were made."""
    overlap: dict[str, dict[str, Any]]
    """Seed -> what the evaluated tokens share with the calibration text and its blocks."""
    cells: tuple[Cell, ...]
    environments: tuple[dict[str, Any], ...]
    """Hardware and versions: one, unless a comparison went on elsewhere."""
    seconds: float
    """Of all cells."""
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(settings: CompareSettings, report: Reporter) -> Comparison:
    """Run all cells; a second call takes the finished ones from the run directory, and tries the refused ones again.

    Raises `UserError` for what no cell could do with: an unknown method, texts that cannot be used; and if every cell refused.
    """
    make_out(settings.out)
    job = _checked(settings)
    run = cells_of(settings, job, "compare", methods=("any",), ratios=(PROBE,))
    keys = [(entry, ratio, seed) for seed in settings.seeds for ratio in settings.ratios for entry in settings.methods]
    quiet = Batch(report)
    waiting = f"another comparison is at work in {run.path}: waiting for what it finds"
    with run.alone(lambda: report.say(waiting)), _scratch(run) as out:
        bodies = [_cell(settings, run, out, *key, quiet) for key in report.track(keys, "comparing", len(keys))]
    return _comparison(settings, job, keys, bodies)


def _checked(settings: CompareSettings) -> Job:
    """A job of the first seed. Raises `UserError` for an entry that no ratio could help."""
    jobs = []
    for entry in settings.methods:
        try:
            jobs.append(prepare(_settings(settings, entry, PROBE, settings.seeds[0], dry_run=True)))
        except UserError as error:
            raise UserError(f"{entry!r} of --methods cannot be run: {error}") from None
    return jobs[0]


@contextmanager
def _scratch(run: RunDirectory) -> Iterator[Path]:
    """Where each pruned model is written over the one before; nothing of it stays, not even of a killed run."""
    directory = run.path / "scratch"
    try:
        yield directory / "pruned"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _settings(settings: CompareSettings, entry: str, ratio: float, seed: int, **options: Any) -> PruneSettings:
    return pruning(settings, **parse_entry(entry), ratio=ratio, seed=seed, **options)


def _cell(
    settings: CompareSettings, run: RunDirectory, out: Path, entry: str, ratio: float, seed: int, report: Reporter
) -> dict[str, Any]:
    """What a cell found. A refusal is not remembered: what is mended since is then found."""

    def find() -> dict[str, Any]:
        asked = _settings(settings, entry, ratio, seed, out=out, force=True, resume=True)
        result = prune(asked, report)
        assert isinstance(result, PruneResult)
        found = result.to_json()
        return {name: found[name] for name in FOUND} | {"environment": environment() | hardware(settings.device)}

    try:
        return remembered(run, f"{entry} at {ratio} with seed {seed}", find)
    except UserError as error:
        report.warn(f"{entry} at {ratio:g} with seed {seed} was refused: {error}")
        return {"refused": str(error)}


def _comparison(
    settings: CompareSettings, job: Job, keys: list[tuple[str, float, int]], bodies: list[dict[str, Any]]
) -> Comparison:
    done = [(seed, body) for (_, _, seed), body in zip(keys, bodies, strict=True) if "refused" not in body]
    if not done:
        raise UserError(f"no method could be run at any ratio. The first refusal: {bodies[0]['refused']}")
    _, first = done[0]
    places: list[dict[str, Any]] = []
    for _, body in done:
        if body["environment"] not in places:
            places.append(body["environment"])
    cells = tuple(_told(*key, body, places) for key, body in zip(keys, bodies, strict=True))
    asked = portable(settings.to_json())
    return Comparison(
        model=asked["model"], fingerprint=job.source.fingerprint, command=command(asked, "compare"),
        perplexity_before=first["perplexity_before"], parameters_before=first["parameters_before"], evaluation=first["evaluation"],
        calibration={str(seed): body["calibration"] for seed, body in done},
        overlap={str(seed): body["overlap"] for seed, body in done}, cells=cells, environments=tuple(places),
        seconds=sum(body["seconds"] for _, body in done), settings=asked,
    )  # fmt: skip


def _told(entry: str, ratio: float, seed: int, body: dict[str, Any], places: list[dict[str, Any]]) -> Cell:
    if "refused" in body:
        return Cell(entry=entry, ratio=ratio, seed=seed, refused=body["refused"])
    return Cell(
        entry=entry, ratio=ratio, seed=seed, ratio_reached=body["ratio_reached"], perplexity=body["perplexity_after"],
        parameters=body["parameters_after"], compensate=body["compensate"], allocation=body["allocation"],
        verified=body["verified"], seconds=body["seconds"], environment=places.index(body["environment"]),
    )  # fmt: skip
