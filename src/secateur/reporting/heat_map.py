"""Where a model was pruned: a row for each layer, a column for each axis, and in each cell what stayed. Imports no torch."""

from markupsafe import Markup

from secateur.reporting.facts import FigureFacts
from secateur.reporting.kept import AXES
from secateur.reporting.svg import WIDE, heat, plot, rect, text

GUTTER, HEAD, GAP = 44.0, 24.0, 3.0
STEPS = 20


def heat_map(figures: FigureFacts) -> Markup | None:
    """None where there is nothing to show. A layer that left whole is a row without colour."""
    axes = list(figures.axes) or ["layer"]
    if not figures.layers:
        return None
    row = 22.0 if len(figures.layers) <= 24 else 17.0 if len(figures.layers) <= 48 else 14.0
    column = (WIDE - GUTTER) / len(axes)
    parts = [text(0, HEAD - 9, "layer", "muted")]
    for number, axis in enumerate(axes):
        name = "the whole layer" if axis == "layer" else AXES.get(axis, axis)
        parts.append(text(GUTTER + (number + 0.5) * column, HEAD - 9, name, "muted", "middle", room=column))
    for layer, kept in enumerate(figures.layers):
        top = HEAD + layer * row
        parts.append(text(GUTTER - 10, top + row / 2 + 4, str(layer), "muted", "end"))
        for number, axis in enumerate(axes):
            parts += _cell(figures, axis, kept, GUTTER + number * column, top, column - GAP, row - GAP)
    bottom = HEAD + len(figures.layers) * row + 8
    return plot(bottom + 30, _told(figures), *parts, *_legend(bottom))


def _cell(
    figures: FigureFacts, axis: str, kept: dict[str, int] | None, x: float, y: float, wide: float, high: float
) -> list[Markup]:
    middle, line = x + wide / 2, y + high / 2 + 4
    if kept is None:
        return [rect(x, y, wide, high, "gone", radius=2), text(middle, line, "left whole", "muted", "middle")]
    units = figures.axes[axis].units if axis in figures.axes else 1
    stays = kept.get(axis, units)
    colour, on = heat(stays / units)
    body = "stays" if axis not in figures.axes else f"{stays:,} of {units:,}"
    title = f"{body}: {stays / units:.1%} stays"
    return [
        rect(x, y, wide, high, "cell", colour, title, radius=2),
        text(middle, line, body, f"{on} through", "middle", room=wide),
    ]


def _legend(top: float) -> list[Markup]:
    start, wide = GUTTER, WIDE - GUTTER - GAP
    cells = [rect(start + n * wide / STEPS, top, wide / STEPS + 0.5, 8, "", heat((n + 0.5) / STEPS)[0]) for n in range(STEPS)]
    marks = [
        text(start, top + 21, "0% stays", "muted"), text(start + wide / 2, top + 21, "50%", "muted", "middle"),
        text(start + wide, top + 21, "100%", "muted", "end"),
    ]  # fmt: skip
    return cells + marks


def _told(figures: FigureFacts) -> str:
    gone = sum(kept is None for kept in figures.layers)
    told = [f"Heat map of what stays in each of {len(figures.layers)} layers"]
    for axis, about in figures.axes.items():
        shares = [kept.get(axis, about.units) / about.units for kept in figures.layers if kept is not None]
        told.append(f"{AXES.get(axis, axis)}: {min(shares):.0%} to {max(shares):.0%}")
    return "; ".join(told + ([f"{gone} layers left whole"] if gone else [])) + "."
