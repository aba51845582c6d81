"""The plot of a comparison: perplexity against the ratio that was reached, one line a method. Imports no torch.

matplotlib is imported only to draw; it comes with the extra `plot`.
"""

import math
from importlib.util import find_spec
from io import StringIO
from statistics import mean
from typing import Any

from secateur.reporting.compare import Found, done, methods, ratios

LOGARITHMIC = 3.0  # from this range of perplexities on, largest over smallest, the axis is logarithmic
MARKERS, LINES = "osD^vPX*<>", ("-", "--", ":", "-.")


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def compare_plot(found: Found) -> str:
    """An SVG image; equal for equal results. The legend has the order of the lines' right ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = {method: line for method in methods(found) if (line := points(found, method))}
    top = sorted(lines, key=lambda method: lines[method][-1][1], reverse=True)
    with rc_context({"svg.hashsalt": "secateur", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.0, max(4.0, 1.5 + 0.22 * len(lines))))
        axes: Any = figure.subplots()
        for number, method in enumerate(lines):
            _draw(axes, method, lines[method], number)
        axes.axhline(found["perplexity_before"], color="0.4", linewidth=1, linestyle=(0, (1, 2)), label="dense")
        _finish(axes, found, lines)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(
            [handles[name] for name in (*top, "dense")], [*top, "dense"], loc="center left", bbox_to_anchor=(1.02, 0.5),
            frameon=False, fontsize=8,
        )  # fmt: skip
        image = StringIO()
        figure.savefig(image, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return image.getvalue()


def points(found: Found, method: str) -> list[tuple[float, float, float, float]]:
    """For each ratio that has a finite perplexity: mean ratio reached, mean perplexity, the smallest, the largest."""
    each = [[c for c in done(found, method, ratio) if math.isfinite(c["perplexity"])] for ratio in sorted(ratios(found))]
    known = [([c["perplexity"] for c in cells], [c["ratio_reached"] for c in cells]) for cells in each if cells]
    return [(mean(reached), mean(values), min(values), max(values)) for values, reached in known]


def logarithmic(found: Found, lines: dict[str, list[tuple[float, float, float, float]]]) -> bool:
    values = [found["perplexity_before"], *(point[3] for line in lines.values() for point in line)]
    return max(values) / min(values) >= LOGARITHMIC


def _draw(axes: Any, method: str, line: list[tuple[float, float, float, float]], number: int) -> None:
    x, middle, low, high = zip(*line, strict=True)
    marker = MARKERS[(number + number // 10) % len(MARKERS)]
    style = {"color": f"C{number % 10}", "linestyle": LINES[number // 10 % len(LINES)], "marker": marker}
    axes.plot(x, middle, **style, markersize=4.5, linewidth=1.4, label=method.replace("$", r"\$"))
    axes.fill_between(x, low, high, color=f"C{number % 10}", alpha=0.15, linewidth=0)


def _finish(axes: Any, found: Found, lines: dict[str, list[tuple[float, float, float, float]]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlabel("block parameters removed")
    axes.set_ylabel("perplexity")
    axes.set_title(found["model"], fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 2):g}%"))
    if logarithmic(found, lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
