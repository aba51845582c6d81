"""What the report says of comparisons, studies and generated text. Imports no torch."""

import math
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from secateur.records import Record
from secateur.reporting.facts import ComparedCell, CompareFacts, GenerateFacts, StudyFacts
from secateur.reporting.parts import Plot, Table
from secateur.reporting.scatter import Axis, Series, line_plot
from secateur.reporting.spread import spread
from secateur.reporting.svg import tick_text
from secateur.reporting.words import bytes_of, digits, percent


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    lead: str
    plot: Plot | None
    table: Table
    refused: list[str]
    command: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    title: str
    lead: str
    completions: list[tuple[str, str]]
    command: str


def compared(record: Record) -> Section:
    """Methods at ratios: a line each, and a table of means over seeds."""
    facts = CompareFacts.read(record)
    methods = list(dict.fromkeys(c.entry for c in facts.cells))
    ratios = sorted(dict.fromkeys(c.ratio for c in facts.cells))
    series = [Series(number=n, name=m, points=_points(facts, m, ratios)) for n, m in enumerate(methods, start=1)]
    image = line_plot(
        series, Axis(name="parameters of the layers that left", spelled=lambda v: f"{100 * v:g}%"),
        Axis(name="perplexity, less is better"), reference=facts.perplexity_before,
    )  # fmt: skip
    rows = [["", "dense", *(f"{facts.perplexity_before:.2f}" for _ in ratios)]]
    rows += [
        [str(n), m, *(spread([c.perplexity for c in _cells(facts, m, r)], 2) for r in ratios)]
        for n, m in enumerate(methods, start=1)
    ]
    return Section(
        title=f"Methods on {facts.model}", lead=f"Perplexity: {facts.evaluation}. Mean over seeds (smallest to largest).",
        plot=_plot(image, "Dots: means over seeds; bars: smallest to largest; dashed: the original."),
        table=Table(head=["", "method", *(percent(r, 0) for r in ratios)], rows=rows, numeric=len(ratios)),
        refused=[f"{c.entry} at {percent(c.ratio, 0)}, seed {c.seed}: {c.refused}" for c in facts.cells if c.refused],
        command=record.command,
    )  # fmt: skip


def _cells(facts: CompareFacts, method: str, ratio: float) -> list[ComparedCell]:
    return [c for c in facts.cells if (c.entry, c.ratio) == (method, ratio) and c.perplexity is not None]


def _points(facts: CompareFacts, method: str, ratios: list[float]) -> list[tuple[float, float, float, float]]:
    points = []
    for ratio in ratios:
        cells = _cells(facts, method, ratio)
        values = [c.perplexity for c in cells if c.perplexity is not None and math.isfinite(c.perplexity)]
        reached = [c.ratio_reached for c in cells if c.ratio_reached is not None]
        if values and reached:
            points.append((mean(reached), mean(values), min(values), max(values)))
    return points


def _plot(image: Markup | None, caption: str) -> Plot | None:
    return None if image is None else Plot(image=image, caption=caption)


def studied(record: Record) -> Section:
    """Estimators of the gradient: a row each."""
    facts = StudyFacts.read(record)
    axes = list(dict.fromkeys(axis for row in facts.rows for axis in row.spearman))
    cells = list(
        dict.fromkeys((ratio, how) for row in facts.rows for ratio, by_how in row.perplexity.items() for how in by_how)
    )
    rows = []
    for method, gradient in dict.fromkeys((row.method, row.gradient) for row in facts.rows):
        same = [row for row in facts.rows if (row.method, row.gradient) == (method, gradient)]
        peaks = [row.peak_memory_bytes for row in same if row.peak_memory_bytes]
        rows.append([
            method, gradient or "-", *(spread([row.spearman.get(axis) for row in same], 3) for axis in axes),
            spread([row.cosine for row in same], 3),
            *(spread([row.perplexity.get(ratio, {}).get(how) for row in same], 2) for ratio, how in cells),
            spread([row.seconds for row in same], 1), bytes_of(max(peaks)) if peaks else "-",
        ])  # fmt: skip
    head = [
        "method",
        "gradient",
        *(f"Spearman, {a}" for a in axes),
        "cosine",
        *(f"{r} {h}" for r, h in cells),
        "seconds",
        "peak",
    ]
    return Section(
        title=f"Gradients on {facts.model}",
        lead=f"The original's perplexity: {digits(facts.perplexity_before)}. {facts.evaluation}.",
        plot=None, table=Table(head=head, rows=rows, numeric=len(head) - 2), refused=[], command=record.command,
    )  # fmt: skip


def generated(record: Record) -> Generation:
    facts = GenerateFacts.read(record)
    name = next((m.name for m in record.models.values()), "a model")
    probed = next((m.probed for m in record.models.values() if m.probed), None)
    return Generation(
        title=f"Text by {name}{f', {probed}' if probed else ''}", lead=f"{tick_text(facts.tokens_per_second)} tokens per second.",
        completions=[(one.prompt, one.text) for one in facts.completions], command=record.command,
    )  # fmt: skip
