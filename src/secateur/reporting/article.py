"""What the report says of one model. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from secateur.records import Record
from secateur.reporting.candidates import Candidate, Quality
from secateur.reporting.costs import cost_note, cost_table
from secateur.reporting.distributions import distribution_plot, influence_plot
from secateur.reporting.facts import FigureFacts, PruneFacts
from secateur.reporting.heat_map import heat_map
from secateur.reporting.kept import AXES
from secateur.reporting.parts import Plot, Table, Tile
from secateur.reporting.rows import Value, value_plot
from secateur.reporting.speed import memory, not_faster, shape, speed_plots, timings
from secateur.reporting.words import Number, bytes_of, change, count, duration, percent, plus_minus


@dataclass(frozen=True, kw_only=True)
class Article:
    """One model. A list that is empty is a section with a sentence on what is missing."""

    anchor: str
    candidate: Candidate
    lead: str
    tiles: list[Tile]
    heat: Markup | None = None
    costs: Table | None = None
    cost_note: str = ""
    quality: list[Plot] = field(default_factory=list)
    rise: str = ""
    tasks: Table | None = None
    speed: list[Plot] = field(default_factory=list)
    timings: Table | None = None
    not_faster: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    exports: Table | None = None
    scores: list[Plot] = field(default_factory=list)
    how: list[tuple[str, str]] = field(default_factory=list)
    load: str = ""
    notes: list[str] = field(default_factory=list)
    command: str = ""
    bench_command: str = ""


def article(candidate: Candidate, records: Sequence[Record]) -> Article:
    facts, figures = candidate.facts, candidate.figures
    common = {
        "anchor": f"model-{candidate.number}", "candidate": candidate, "quality": _quality(candidate), "tasks": _tasks(candidate),
        "speed": speed_plots(candidate, records), "timings": timings(candidate), "not_faster": not_faster(candidate, records),
        "memory": memory(candidate), "exports": _exports(candidate),
        "bench_command": f"secateur bench {candidate.base.name if candidate.base else 'ORIGINAL'} {candidate.name}",
    }  # fmt: skip
    if facts is None or figures is None or candidate.pruned is None:
        return Article(lead="Measured, without a record of a pruning.", tiles=_tiles(candidate, None), **common)
    return Article(
        lead=_lead(candidate, facts), tiles=_tiles(candidate, facts), heat=heat_map(figures), costs=cost_table(figures),
        cost_note=cost_note(figures, facts), rise=_rise(facts), scores=_scores(figures), how=_how(candidate.pruned, facts),
        load=facts.load or "", notes=facts.notes, command=candidate.pruned.command, **common,
    )  # fmt: skip


def _lead(candidate: Candidate, facts: PruneFacts) -> str:
    removed = percent(facts.ratio_reached)
    text = f"{removed} of the parameters of all layers left {candidate.base.name if candidate.base else 'the original'}"
    told = f"{text}, chosen by {facts.method}"
    return (
        f"{told}; {facts.compensate} repaired what stays." if facts.compensate != "none" else f"{told}; nothing was repaired."
    )


def _tiles(candidate: Candidate, facts: PruneFacts | None) -> list[Tile]:
    tiles: list[Tile] = []
    if facts:
        tiles += [
            _tile("Parameters", facts.parameters_before, facts.parameters_after, count),
            _tile("Weights", facts.bytes_before, facts.bytes_after, bytes_of),
        ]
        if facts.perplexity_before is not None and facts.perplexity_after is not None:
            tiles.append(_tile("Perplexity", facts.perplexity_before, facts.perplexity_after, plus_minus_of(facts)))
        else:
            tiles.append(Tile(name="Perplexity", value="not measured"))
    elif candidate.parameters:
        tiles.append(Tile(name="Parameters", value=count(candidate.parameters)))
    if not facts and candidate.qualities:
        tiles.append(
            Tile(name="Perplexity", value=plus_minus(candidate.qualities[0].perplexity, candidate.qualities[0].stderr))
        )
    known = [t for t in candidate.timings if t.cell.speedup is not None]
    if known:
        best = max(known, key=lambda t: (t.against is candidate.base, t.cell.batch * t.cell.seq_len))
        over = "before" if candidate.base and best.against is candidate.base else best.over
        tiles.append(Tile(name="Speed", value=f"{best.cell.speedup:.2f}×", note=f"as fast as {over}: {shape(best.cell)}"))
    else:
        tiles.append(Tile(name="Speed", value="not measured"))
    if facts:
        note = f"{bytes_of(facts.peak_memory_bytes)} of memory at the peak" if facts.peak_memory_bytes else ""
        tiles.append(Tile(name="Pruned in", value=duration(facts.seconds), note=note))
    return tiles


def _tile(name: str, before: Number, after: Number, spelled: Any) -> Tile:
    return Tile(name=name, value=spelled(after), before=spelled(before), change=change(before, after))


def plus_minus_of(facts: PruneFacts) -> Any:
    """Spells both perplexities, each with its own error."""
    errors = {facts.perplexity_before: facts.perplexity_stderr_before, facts.perplexity_after: facts.perplexity_stderr_after}
    return lambda value: plus_minus(value, errors[value])


def _quality(candidate: Candidate) -> list[Plot]:
    plots = []
    for quality in candidate.qualities:
        base = candidate.base.quality(quality.protocol) if candidate.base else None
        rows = [("before", base, "c1")] if base else []
        values = [
            _value(name, one, cls) for name, one, cls in [*rows, ("after" if candidate.base else candidate.name, quality, "c0")]
        ]
        label = "Perplexity " + ", ".join(f"{v.label} {v.told}" for v in values)
        image = value_plot(values, unit="perplexity, less is better", label=label)
        if image:
            note = " Whiskers: one standard error, over windows." if quality.stderr is not None else " One window has no error."
            plots.append(Plot(image=image, caption=f"{quality.protocol}.{note}"))
    return plots


def _value(name: str, quality: Quality, cls: str) -> Value:
    low, high = quality.ends or (None, None)
    return Value(
        label=name, value=quality.perplexity, low=low, high=high, told=plus_minus(quality.perplexity, quality.stderr), cls=cls
    )  # fmt: skip


def _rise(facts: PruneFacts) -> str:
    if facts.loss_rise is None:
        return ""
    return f"{plus_minus(facts.loss_rise, facts.loss_rise_stderr)} nats per token"


def _tasks(candidate: Candidate) -> Table | None:
    base = {(t.task, t.metric): t for t in candidate.base.tasks} if candidate.base else {}
    if not candidate.tasks:
        return None

    def told(task: Any) -> str:
        if task is None or task.value is None:
            return ""
        return plus_minus(task.value, task.stderr) if isinstance(task.value, float) else task.value

    rows = [
        [t.task, t.metric, "" if t.examples is None else f"{t.examples:,}", told(base.get((t.task, t.metric))), told(t)]
        for t in candidate.tasks
    ]
    return Table(head=("task", "metric", "rows", "before", "after"), rows=rows, numeric=3)


def _exports(candidate: Candidate) -> Table | None:
    rows = []
    for file in candidate.exports:
        found = file.agreement
        told = [f"{percent(found.top_1)} of {found.tokens:,}", plus_minus(found.perplexity_hugging_face, None),
                plus_minus(found.perplexity_llama_cpp, None)] if found else ["not run", "", ""]  # fmt: skip
        rows.append([file.out, file.architecture, file.dtype, bytes_of(file.bytes), *told])
    head = ("file", "as", "type", "size", "same likeliest token", "perplexity, Hugging Face", "llama.cpp")
    return Table(head=head, rows=rows, numeric=4) if rows else None


def _scores(figures: FigureFacts) -> list[Plot]:
    plots = [
        Plot(
            image=distribution_plot(scores, AXES.get(axis, axis)), title=AXES.get(axis, axis),
            caption="Each layer's bars are as high as its fullest bin. The outermost bins hold what lies beyond them.",
        )
        for axis, scores in figures.scores.items()
    ]  # fmt: skip
    if figures.influence:
        dropped = [i for i, kept in enumerate(figures.layers) if kept is None]
        plots.append(
            Plot(
                image=influence_plot(figures.influence, dropped), title="layers", caption="The layers of least influence left."
            )
        )
    return plots


def _how(record: Record, facts: PruneFacts) -> list[tuple[str, str]]:
    env: Mapping[str, Any] = record.environment
    rows = [
        ("method", facts.method), ("repair", facts.compensate), ("share between layers", facts.allocation or "whole layers leave"),
        ("ratio", f"{percent(facts.ratio_reached, 2)} of the parameters of all layers ({percent(facts.ratio, 2)} asked)"),
        ("calibration", facts.calibration),
    ]  # fmt: skip
    if facts.gradient and isinstance(name := facts.gradient.get("estimator", facts.gradient.get("name")), str):
        rows.append(("gradient", name))
    overlap = facts.overlap or {}
    if isinstance(shared := overlap.get("in_calibration_text_ratio"), float):
        rows.append(("evaluated text found in the calibration text", percent(shared, 2)))
    rows += [
        ("check after writing", f"every layer read back; largest relative difference {facts.verified:.1e}"),
        ("check of the directory", facts.reloaded.told if facts.reloaded else ""),
        ("loads as", "a stock checkpoint" if facts.stock else "a checkpoint with its own modelling file"),
        ("when", record.time.replace("T", " ")), ("on", ", ".join(str(env[k]) for k in ("cpu", "system") if k in env)),
        ("versions", ", ".join(f"{name} {env[name]}" for name in ("secateur", "torch", "transformers", "python") if name in env)),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]
