"""How the scores lay: for each layer a histogram of the units that stayed over those that left. Imports no torch."""

from collections.abc import Sequence

from markupsafe import Markup

from secateur.reporting.facts import HistogramFacts, ScoreFacts
from secateur.reporting.svg import WIDE, Scale, bars, below, group, line, plot, rect, text, tick_text
from secateur.reporting.words import Number

GUTTER, HEAD, FOOT = 44.0, 22.0, 36.0


def distribution_plot(scores: ScoreFacts, name: str) -> Markup:
    """One axis. Every layer's bars are as high as its fullest bin, so heights do not compare between layers."""
    row = 30.0 if len(scores.layers) <= 16 else 22.0 if len(scores.layers) <= 40 else 15.0
    end = WIDE - 8
    scale = _scale(scores, end)
    bottom = HEAD + row * len(scores.layers)
    parts = [text(0, HEAD - 8, "layer", "muted")]
    for tick in scale.ticks(5 if scores.scale == "log" else 4):
        x = scale.at(tick)
        parts += [line(x, HEAD, x, bottom, "grid"), below(x, bottom + 14, tick_text(tick))]
    for number, layer in enumerate(scores.layers):
        base = HEAD + (number + 1) * row
        parts.append(text(GUTTER - 10, base - 4, str(number), "muted", "end"))
        parts.append(line(GUTTER, base, end, base, "grid"))
        parts += (
            [text(GUTTER + 6, base - 5, "not scored", "muted")] if layer is None else _bars(layer, GUTTER, end, base, row - 4)
        )
    parts.append(
        text((GUTTER + end) / 2, bottom + 30, f"score{', logarithmic' if scores.scale == 'log' else ''}", "muted", "middle")
    )
    told = f"Histograms of the scores of {name} in {len(scores.layers)} layers, units that stayed over units that left."
    return plot(bottom + FOOT, told, *parts)


def _scale(scores: ScoreFacts, end: Number) -> Scale:
    return Scale(low=scores.edges[0], high=scores.edges[-1], start=GUTTER, end=end, log=scores.scale == "log")


def _bars(layer: HistogramFacts, start: Number, end: Number, base: Number, high: Number) -> list[Markup]:
    fullest = max((k + g for k, g in zip(layer.kept, layer.left, strict=False)), default=0) or 1
    wide = (end - start) / max(len(layer.kept), 1)
    stayed, gone = [], []
    for number, (kept, left) in enumerate(zip(layer.kept, layer.left, strict=False)):
        x, up, over = start + number * wide + 0.5, kept / fullest * high, left / fullest * high
        stayed += [(x, base, wide - 1, up)] if kept else []
        gone += [(x, base - up, wide - 1, over)] if left else []
    return [group([bars(stayed, "kept"), bars(gone, "left")], f"{sum(layer.kept):,} stayed, {sum(layer.left):,} left")]


def influence_plot(influence: Sequence[Number], dropped: Sequence[int]) -> Markup:
    """What each layer was worth, where whole layers leave."""
    row, end = 20.0, WIDE - 8
    scale = Scale.over([*influence, 0.0], GUTTER, end, zero=True)
    bottom = HEAD + row * len(influence)
    parts = [text(0, HEAD - 8, "layer", "muted")]
    for tick in scale.ticks(4):
        x = scale.at(tick)
        parts += [line(x, HEAD, x, bottom, "grid"), below(x, bottom + 14, tick_text(tick))]
    for number, value in enumerate(influence):
        y, x = HEAD + (number + 0.5) * row, scale.at(value)
        cls = "left" if number in dropped else "kept"
        parts.append(text(GUTTER - 10, y + 4, str(number), "muted", "end"))
        parts.append(rect(scale.at(0.0), y - 5, x - scale.at(0.0), 10, cls, title=f"layer {number}: {value:.4g}"))
    parts.append(text((GUTTER + end) / 2, bottom + 30, "influence of the layer", "muted", "middle"))
    return plot(bottom + FOOT, f"Influence of each of {len(influence)} layers; {len(dropped)} left.", *parts)
