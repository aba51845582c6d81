"""The table of a study of gradient estimators, in Markdown. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.reporting.spread import markdown, spread

MIB = 1 << 20


def study_table(study: Mapping[str, Any]) -> str:
    """One row for each estimator: means over seeds, with the smallest and largest where they differ."""
    rows = study["rows"]
    axes = list(dict.fromkeys(axis for row in rows for axis in row["spearman"]))
    cells = [(r, how) for r, by_how in rows[0]["perplexity"].items() for how in by_how]
    quality = [*(f"Spearman, {a}" for a in axes), "cosine", *(f"{r} {how}" for r, how in cells)]
    head = ["method", "gradient", *quality, "forward", "backward", "seconds", "peak MiB"]
    lines = []
    for method, gradient in dict.fromkeys((row["method"], row["gradient"]) for row in rows):
        same = [row for row in rows if (row["method"], row["gradient"]) == (method, gradient)]
        lines.append(_row(same, axes, cells))
    title = (
        f"{study['model']}: dense perplexity {study['perplexity_before']:.2f} on {study['evaluation']}; {study['calibration']}"
    )
    return f"{title}\n\n{markdown(head, lines)}"


def _row(same: Sequence[Mapping[str, Any]], axes: Sequence[str], cells: Sequence[tuple[str, str]]) -> list[str]:
    first = same[0]
    return [
        first["method"], first["gradient"] or "-", *(spread([row["spearman"].get(a) for row in same], 3) for a in axes),
        spread([row["cosine"] for row in same], 3), *(spread([row["perplexity"][r][how] for row in same], 2) for r, how in cells),
        str(first["forward_passes"]), str(first["backward_passes"]), spread([row["seconds"] for row in same], 1),
        spread([row["peak_memory_bytes"] and row["peak_memory_bytes"] / MIB for row in same], 0),
    ]  # fmt: skip
