"""Figures over seeds, and Markdown tables of them. Imports no torch."""

from collections.abc import Sequence
from statistics import mean


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean (smallest to largest); a dash where there is nothing to say."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    low, high, middle = (f"{v:.{digits}f}" for v in (min(known), max(known), mean(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its last line ended."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
