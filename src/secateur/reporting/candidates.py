"""The models that records are of, put together: what was measured of each, by whichever command. Imports no torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from secateur.records import Model, Record
from secateur.reporting.facts import (
    BenchFacts,
    EvalFacts,
    ExportFacts,
    FigureFacts,
    PruneFacts,
    TaskFacts,
    TasksFacts,
    TimedCell,
)
from secateur.reporting.words import duration


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A perplexity, and the standard error of it, to first order."""

    protocol: str
    perplexity: float
    stderr: float | None
    verb: str

    @property
    def ends(self) -> tuple[float, float] | None:
        known = self.stderr is not None and math.isfinite(self.perplexity)
        return (max(self.perplexity - self.stderr, 0.0), self.perplexity + self.stderr) if known and self.stderr else None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """`bench`: which record it is of; seconds of two records were not measured in turns. `against`: what a speedup is over."""

    cell: TimedCell
    bench: int
    against: "Candidate | None" = None

    @property
    def told(self) -> str:
        """`1.38 ms (0.94× base)`."""
        took = duration(self.cell.seconds)
        return took if self.cell.speedup is None else f"{took} ({self.cell.speedup:.2f}× {self.over})"

    @property
    def over(self) -> str:
        return self.against.label if self.against else "the first model"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak of a process that ran the model, and what kind of memory and run."""

    peak: int
    told: str


@dataclass(kw_only=True)
class Candidate:
    """One model, as the report lists it."""

    number: int
    name: str
    probed: str | None = None
    pruned: Record | None = None
    """The record of its pruning; None for an original, and for a model that only was measured."""
    dense: bool = False
    """Others of the report were pruned from it."""
    parameters: int | None = None
    bytes: int | None = None
    qualities: list[Quality] = field(default_factory=list)
    tasks: list[TaskFacts] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    exports: list[ExportFacts] = field(default_factory=list)
    base: "Candidate | None" = None

    @property
    def facts(self) -> PruneFacts | None:
        return PruneFacts.read(self.pruned) if self.pruned else None

    @property
    def figures(self) -> FigureFacts | None:
        return FigureFacts.read(self.pruned, "figures") if self.pruned else None

    @property
    def method(self) -> str:
        """How it was made, in a few words."""
        facts = self.facts
        if facts is None:
            return "original" if self.dense else ""
        share = f"{100 * facts.ratio_reached:.0f}% by {facts.method}"
        return f"{share}, {facts.compensate}" if facts.compensate != "none" else share

    @property
    def label(self) -> str:
        return f"{self.name}, {self.probed}" if self.probed else self.name

    def quality(self, protocol: str) -> Quality | None:
        return next((q for q in self.qualities if q.protocol == protocol), None)

    def timing(self, batch: int, seq_len: int, phase: str) -> Timing | None:
        return next((t for t in self.timings if (t.cell.batch, t.cell.seq_len, t.cell.phase) == (batch, seq_len, phase)), None)

    def add_quality(self, quality: Quality) -> None:
        """The same text and windows measured by two commands are one quality; the one with an error stays."""
        known = self.quality(quality.protocol)
        if known is None:
            self.qualities.append(quality)
        elif known.stderr is None and quality.stderr is not None:
            self.qualities[self.qualities.index(known)] = quality


class Gathered:
    """Models by what they are: their weights, or, where these were not at hand, their name in one record."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.found: dict[tuple[str | None, ...], Candidate] = {}
        for record in records:
            if record.verb == "prune":
                self._pruned(record)
        for number, record in enumerate(records):
            if record.verb == "eval":
                self._evaluated(record)
            elif record.verb in ("bench", "demo"):
                self._timed(record, number)
            elif record.verb == "export":
                self._at(_part(record, "model", "a model"), record).exports.append(ExportFacts.read(record))
        for number, candidate in enumerate(self.candidates, start=1):
            candidate.number = number

    @property
    def candidates(self) -> list[Candidate]:
        """Originals first, then in the order given."""
        return sorted(self.found.values(), key=lambda c: not c.dense)

    def _at(self, model: Model, record: Record) -> Candidate:
        key = (model.identity or f"{model.name} of {record.origin}", model.probed)
        if key not in self.found:
            self.found[key] = Candidate(number=0, name=model.name, probed=model.probed)
        return self.found[key]

    def _pruned(self, record: Record) -> None:
        facts = PruneFacts.read(record)
        before = self._at(_part(record, "before", "the original"), record)
        after = self._at(_part(record, "after", "the result"), record)
        before.dense, after.pruned, after.base = True, record, before
        before.parameters, before.bytes = facts.parameters_before, facts.bytes_before
        after.parameters, after.bytes = facts.parameters_after, facts.bytes_after
        for candidate, value, stderr in (
            (before, facts.perplexity_before, facts.perplexity_stderr_before),
            (after, facts.perplexity_after, facts.perplexity_stderr_after),
        ):
            if value is not None and facts.evaluation:
                candidate.add_quality(Quality(protocol=facts.evaluation, perplexity=value, stderr=stderr, verb="prune"))

    def _evaluated(self, record: Record) -> None:
        candidate = self._at(_part(record, "model", "a model"), record)
        if "tasks" in record.result:
            candidate.tasks += TasksFacts.read(record).tasks
            return
        facts = EvalFacts.read(record)
        stderr = facts.perplexity * facts.stderr if facts.stderr is not None else None
        candidate.add_quality(Quality(protocol=facts.protocol, perplexity=facts.perplexity, stderr=stderr, verb="eval"))

    def _timed(self, record: Record, number: int) -> None:
        facts = BenchFacts.read(record)
        first = record.models.get("model")
        against = self._at(first, record) if first else None
        for model in facts.models:
            if model.model not in record.models:
                continue
            candidate = self._at(record.models[model.model], record)
            count = facts.new_tokens or 1
            cells = [c.each_token(count) if c.phase == "decode" else c for c in facts.cells if c.model == model.model]
            candidate.timings += [Timing(cell=cell, bench=number, against=against) for cell in cells]
            candidate.parameters = candidate.parameters or model.parameters
            candidate.bytes = candidate.bytes or model.parameter_bytes
            if model.peak_memory_bytes:
                candidate.memory.append(Memory(peak=model.peak_memory_bytes, told=facts.peak_memory or "memory at the peak"))


def shared_protocols(candidates: Sequence[Candidate]) -> list[str]:
    """Texts and windows that at least two models were measured on, those of most models first."""
    counts: dict[str, int] = {}
    for quality in (q for candidate in candidates for q in candidate.qualities):
        counts[quality.protocol] = counts.get(quality.protocol, 0) + 1
    return sorted((p for p, n in counts.items() if n > 1), key=lambda p: -counts[p])


def shared_cells(candidates: Sequence[Candidate]) -> Iterator[tuple[int, int, str]]:
    """For each phase, the shape that most models were timed at; of several the one of most tokens."""
    counts: dict[tuple[int, int, str], int] = {}
    for cell in (t.cell for candidate in candidates for t in candidate.timings):
        at = (cell.batch, cell.seq_len, cell.phase)
        counts[at] = counts.get(at, 0) + 1
    for phase in ("prefill", "decode per token"):
        shapes = [at for at, n in counts.items() if at[2] == phase and n > 1]
        if shapes:
            yield max(shapes, key=lambda at: (counts[at], at[0] * at[1]))


def _part(record: Record, part: str, name: str) -> Model:
    return record.models.get(part) or Model(name=name, identity=None)
