"""Values with their spread, one above the other on a common scale: perplexities, speedups. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.reporting.svg import GLYPH, WIDE, Scale, below, dot, line, plot, text, tick_text
from secateur.reporting.words import Number

ROW, FOOT, MARGIN = 34.0, 40.0, 14.0


@dataclass(frozen=True, kw_only=True)
class Value:
    """`low` and `high`: the ends of its whisker. `told`: the value in words, with its unit."""

    label: str
    value: Number
    low: Number | None
    high: Number | None
    told: str
    cls: str = "c0"


def value_plot(
    values: Sequence[Value], *, unit: str, label: str, reference: Number | None = None, named: str = ""
) -> Markup | None:
    """None without a finite value. `reference`: a line across all rows, `named` at its foot."""
    known = [v for v in values if math.isfinite(v.value)]
    if not known:
        return None
    ends = [end for v in known for end in (v.value, v.low, v.high) if end is not None and math.isfinite(end)]
    ends += [reference] if reference is not None else []
    log = min(ends) > 0 and max(ends) / min(ends) > 8
    scale = Scale.over(ends, MARGIN, WIDE - MARGIN, log=log)
    bottom = ROW * len(values) + 4
    parts = []
    for tick in scale.ticks(5):
        x = scale.at(tick)
        parts += [line(x, 4.0, x, bottom, "grid"), below(x, bottom + 14, tick_text(tick))]
    if reference is not None:
        x = scale.at(reference)  # not through the labels
        parts += [line(x, row * ROW + 19, x, (row + 1) * ROW + 4, "reference") for row in range(len(values))]
    for number, value in enumerate(values):
        parts += _row(value, scale, number * ROW + 16)
    foot = f"{unit}{', logarithmic' if log else ''}{f'; dashed: {named}' if named else ''}"
    return plot(bottom + FOOT, label, *parts, text(WIDE / 2, bottom + 31, foot, "muted", "middle", room=WIDE))


def _row(value: Value, scale: Scale, top: Number) -> list[Markup]:
    room = WIDE - len(value.told) * GLYPH - 12
    parts = [text(0, top, value.label, "halo", room=room), text(WIDE, top, value.told, "strong halo", "end")]
    if not math.isfinite(value.value):
        return parts
    y, ends = top + 10, [value.low, value.high]
    if all(end is not None and math.isfinite(end) for end in ends):
        low, high = (scale.at(end) for end in ends if end is not None)
        parts += [line(low, y, high, y, f"whisker {value.cls}")]
        parts += [line(x, y - 4, x, y + 4, f"whisker {value.cls}") for x in (low, high)]
    return [*parts, dot(scale.at(value.value), y, 4.5, f"{value.cls} filled", f"{value.label}: {value.told}")]
