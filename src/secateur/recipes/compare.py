"""Which method is best? Every method at every ratio and seed, each a whole pruning on the same texts.

All in one process; what is finished is remembered, and so are the statistics that methods share.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from secateur.errors import UserError
from secateur.recipes.cells import cells_of, make_out, pruning, remembered
from secateur.recipes.job import Job, prepare
from secateur.recipes.prune import prune
from secateur.recipes.result import PruneResult
from secateur.recipes.texts import Texts, open_texts
from secateur.reporter import Batch, Reporter
from secateur.reporting.command import command, portable
from secateur.runs import RunDirectory, environment, hardware
from secateur.settings import PruneSettings
from secateur.studies import CompareSettings, parse_entry

PROBE = 0.01  # a ratio that nearly every method can meet
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
    """Of the pruning without reading the texts. Statistics that methods share are in the seconds of the first that needed them."""
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


class Key(NamedTuple):
    """Which cell: one entry of `--methods` at one ratio under one seed."""

    entry: str
    ratio: float
    seed: int

    def __str__(self) -> str:
        return f"{self.entry} at {self.ratio} with seed {self.seed}"


def compare(settings: CompareSettings, report: Reporter) -> Comparison:
    """Run all cells; a second call takes the finished ones from the run directory, and tries the refused ones again.

    Raises `UserError` for what no cell could do with: an unknown method, texts that cannot be used; and if every cell refused.
    """
    make_out(settings.out)
    bench = Bench(settings=settings, job=_checked(settings), report=Batch(report))
    _warn_of_others(bench, report)
    keys = [Key(m, r, seed) for seed in settings.seeds for r in settings.ratios for m in settings.methods]
    waiting = f"another comparison is at work in {bench.run.path}: waiting for what it finds"
    with bench.run.alone(lambda: report.say(waiting)):
        bodies = {key: bench.found(key) for key in report.track(keys, "comparing", len(keys))}
        shutil.rmtree(bench.scratch.parent, ignore_errors=True)
    return _comparison(settings, bench.job, bodies)


def _warn_of_others(bench: "Bench", report: Reporter) -> None:
    """Say so where the files in `out` are of another model, or hold cells that are not asked for."""
    path = bench.settings.out / "results.json"
    try:
        there = json.loads(path.read_text())
        cells = {(cell["entry"], cell["ratio"], cell["seed"]) for cell in there["cells"]}
        model = there["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing that a comparison wrote
    asked = bench.settings
    more = sum(not (e in asked.methods and r in asked.ratios and s in asked.seeds) for e, r, s in cells)
    what = "is of another model" if model != bench.job.source.fingerprint else f"has {more} cells that are not asked for now"
    if more or model != bench.job.source.fingerprint:
        report.warn(
            f"{str(path)!r} {what}: it and the files beside it are rewritten with this call's entries alone. Finished cells are "
            f"remembered: name them again, and they come back at once"
        )


def _checked(settings: CompareSettings) -> Job:
    """A job of the first entry and seed. Raises `UserError` for an entry that no ratio could help."""
    jobs = [_possible(settings, entry) for entry in settings.methods]
    return jobs[0]


def _possible(settings: CompareSettings, entry: str) -> Job:
    """A job of an entry at the least ratio that it can meet; whole layers leave no small part of a model."""
    for ratio in (PROBE, *sorted(settings.ratios)):
        try:
            return prepare(_settings(settings, Key(entry, ratio, settings.seeds[0]), dry_run=True))
        except UserError as error:
            refused = error
    raise UserError(f"{entry!r} of --methods cannot be run: {refused}")


def _settings(settings: CompareSettings, key: Key, **options: Any) -> PruneSettings:
    return pruning(settings, **parse_entry(key.entry), ratio=key.ratio, seed=key.seed, **options)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where cells are run."""

    settings: CompareSettings
    job: Job
    """Of the first entry and seed, at no ratio of the comparison's."""
    report: Reporter

    @cached_property
    def run(self) -> RunDirectory:
        return cells_of(self.settings, self.job, "compare", methods=("any",), ratios=(PROBE,))

    @property
    def scratch(self) -> Path:
        """Where each pruned model is written over the one before."""
        return self.run.path / "scratch" / "pruned"

    @cached_property
    def texts(self) -> dict[int, Texts]:
        """Seed -> the texts, opened once for all cells of that seed; filled as they are needed."""
        return {self.job.settings.seed: self.job.texts}

    def found(self, key: Key) -> dict[str, Any]:
        """What a cell found. A refusal is not remembered: what is mended since is then found."""
        try:
            return remembered(self.run, str(key), lambda: self._pruned(key))
        except UserError as error:
            self.report.warn(f"{key} was refused: {error}")
            return {"refused": str(error)}

    def _pruned(self, key: Key) -> dict[str, Any]:
        asked = _settings(self.settings, key, out=self.scratch, force=True, resume=True)
        if key.seed not in self.texts:
            self.texts[key.seed] = open_texts(asked, self.job.source)
        result = prune(asked, self.report, self.texts[key.seed])
        assert isinstance(result, PruneResult)
        found = result.to_json()
        return {name: found[name] for name in FOUND} | {"environment": environment() | hardware(self.settings.device)}


def _comparison(settings: CompareSettings, job: Job, bodies: Mapping[Key, dict[str, Any]]) -> Comparison:
    done = {key: body for key, body in bodies.items() if "refused" not in body}
    if not done:
        refusal = next(iter(bodies.values()))["refused"]
        raise UserError(f"no method could be run at any of the ratios. The first refusal: {refusal}")
    first = next(iter(done.values()))
    places: list[dict[str, Any]] = []
    for body in done.values():
        if body["environment"] not in places:
            places.append(body["environment"])
    asked = portable(settings.to_json())
    return Comparison(
        model=asked["model"], fingerprint=job.source.fingerprint, command=command(asked, "compare"),
        perplexity_before=first["perplexity_before"], parameters_before=first["parameters_before"], evaluation=first["evaluation"],
        calibration={str(key.seed): body["calibration"] for key, body in done.items()},
        overlap={str(key.seed): body["overlap"] for key, body in done.items()},
        cells=tuple(_told(key, body, places) for key, body in bodies.items()), environments=tuple(places),
        seconds=sum(body["seconds"] for body in done.values()), settings=asked,
    )  # fmt: skip


def _told(key: Key, body: dict[str, Any], places: list[dict[str, Any]]) -> Cell:
    if "refused" in body:
        return Cell(**key._asdict(), refused=body["refused"])
    return Cell(
        **key._asdict(), ratio_reached=body["ratio_reached"], perplexity=body["perplexity_after"],
        parameters=body["parameters_after"], compensate=body["compensate"], allocation=body["allocation"],
        verified=body["verified"], seconds=body["seconds"], environment=places.index(body["environment"]),
    )  # fmt: skip
