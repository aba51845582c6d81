"""The tables of a comparison of methods, in Markdown. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from secateur.reporting.spread import markdown, spread

NOTED = 0.005  # of all block parameters: how far from what was asked a ratio may be without a word

Found = Mapping[str, Any]


def compare_table(found: Found) -> str:
    """Perplexities; what they are next to the best other method; ratios that were missed, and refusals."""
    parts = [_title(found), _perplexities(found)]
    if len(methods(found)) > 1:
        parts.append(_degradations(found))
    parts += [part for part in (_reached(found), _refusals(found)) if part]
    return "\n\n".join(part.strip() for part in (*parts, _made_by(found))) + "\n"


def methods(found: Found) -> list[str]:
    """The entries, in the order they were given."""
    return list(dict.fromkeys(cell["entry"] for cell in found["cells"]))


def ratios(found: Found) -> list[float]:
    return list(dict.fromkeys(cell["ratio"] for cell in found["cells"]))


def done(found: Found, method: str, ratio: float) -> list[Found]:
    """The cells of one method at one ratio that have a perplexity."""
    cells = [c for c in found["cells"] if (c["entry"], c["ratio"]) == (method, ratio)]
    return [c for c in cells if c["perplexity"] is not None]


def degradation(found: Found, method: str, ratio: float) -> float | None:
    """Mean perplexity over seeds, less that of the original; None without a cell."""
    cells = done(found, method, ratio)
    return mean(c["perplexity"] for c in cells) - found["perplexity_before"] if cells else None


def relative(found: Found, method: str, ratio: float) -> float | None:
    """A method's degradation over the smallest of all other methods'; None where one of them is not there or not positive."""
    own = degradation(found, method, ratio)
    others = [degradation(found, other, ratio) for other in methods(found) if other != method]
    best = min((o for o in others if o is not None), default=None)
    return own / best if own is not None and best is not None and best > 0 else None


def _title(found: Found) -> str:
    seeds = list(dict.fromkeys(cell["seed"] for cell in found["cells"]))
    first = next(iter(found["calibration"].values()))
    return (
        f"# {found['model']}\n\nPerplexity: {found['evaluation']}.\n\nCalibration: {first}; "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}."
    )


def _perplexities(found: Found) -> str:
    asked, seeds = ratios(found), len({cell["seed"] for cell in found["cells"]})
    rows = [["dense", *(f"{found['perplexity_before']:.2f}" for _ in asked), "-"]]
    for method in methods(found):
        each = [done(found, method, ratio) for ratio in asked]
        cells = [_counted(spread([c["perplexity"] for c in cells], 2), cells, seeds) for cells in each]
        rows.append([f"`{method}`", *cells, spread([c["seconds"] for cells in each for c in cells], 1)])
    told = "mean (smallest to largest) over seeds" if seeds > 1 else "one seed"
    return f"## Perplexity\n\n{told}, by the fraction of block parameters that leaves\n\n" + markdown(
        ["method", *map(_percent, asked), "seconds"], rows
    )


def _counted(text: str, cells: Sequence[Found], seeds: int) -> str:
    return f"{text}, {len(cells)} of {seeds} seeds" if 0 < len(cells) < seeds else text


def _degradations(found: Found) -> str:
    rows = []
    for method in methods(found):
        each = [relative(found, method, ratio) for ratio in ratios(found)]
        known = [value for value in each if value is not None and value > 0]
        overall = math.exp(mean(map(math.log, known))) if len(known) == len(each) else None
        rows.append([f"`{method}`", *("-" if v is None else f"{v:.3f}" for v in (*each, overall))])
    return (
        "## Degradation relative to the best other method\n\n(mean perplexity - dense) / (the same of the best other method at "
        "that ratio): below 1 is better than every other one\n\n"
        + markdown(["method", *map(_percent, ratios(found)), "geometric mean"], rows)
    )


def _reached(found: Found) -> str:
    lines = []
    for method in methods(found):
        for ratio in ratios(found):
            reached = [cell["ratio_reached"] for cell in done(found, method, ratio)]
            if any(abs(value - ratio) > NOTED for value in reached):
                lines.append(f"- `{method}` at {_percent(ratio)}: {spread([100 * value for value in reached], 2)}%")
    return "## Ratios reached, where not what was asked\n\n" + "\n".join(lines) if lines else ""


def _refusals(found: Found) -> str:
    seeds: dict[tuple[str, float, str], list[int]] = {}
    for cell in found["cells"]:
        if cell["refused"] is not None:
            seeds.setdefault((cell["entry"], cell["ratio"], cell["refused"]), []).append(cell["seed"])
    lines = [
        f"- `{method}` at {_percent(ratio)}, seed {', '.join(map(str, which))}: {' '.join(why.split())}"
        for (method, ratio, why), which in seeds.items()
    ]
    return "## Refused\n\n" + "\n".join(lines) if lines else ""


def _made_by(found: Found) -> str:
    each = [
        f"- {e['device']}{'' if e['device'] == e['cpu'] else ' on ' + e['cpu']}, {e['threads']} threads, Secateur {e['secateur']}, "
        f"torch {e['torch']}, transformers {e['transformers']}, Python {e['python']}"
        for e in found["environments"]
    ]
    shares = [facts["in_calibration_text_ratio"] for facts in found["overlap"].values() if facts]
    text = f"Of the evaluated runs of 32 tokens, {max(shares):.2%} occur in the calibration text.\n\n" if shares else ""
    return f"{text}Made with\n\n    {found['command']}\n\non\n\n" + "\n".join(each)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g}%"
