"""What stays of each layer, layers that are alike in one row. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AXES = {"kv": "kv heads", "group": "query heads", "ffn": "MLP channels"}


@dataclass(frozen=True, kw_only=True)
class KeptRow:
    layers: str
    cells: list[str]


@dataclass(frozen=True, kw_only=True)
class KeptTable:
    head: list[str]
    rows: list[KeptRow]


def kept_rows(figures: Mapping[str, Any]) -> KeptTable | None:
    """None where the figures have no layers."""
    given, layers = figures.get("axes") or {}, figures.get("layers") or []
    about = {axis: given[axis] for axis in (*AXES, *given) if axis in given}
    if not layers:
        return None
    head = [AXES.get(axis, axis) for axis in about] or ["the layer"]
    rows: list[KeptRow] = []
    first = 0
    for number, kept in enumerate(layers):
        if number + 1 < len(layers) and layers[number + 1] == kept:
            continue
        cells = [_cell(kept, axis, facts["units"]) for axis, facts in about.items()] or [_cell(kept, "", 0)]
        rows.append(KeptRow(layers=str(number) if first == number else f"{first} to {number}", cells=cells))
        first = number + 1
    return KeptTable(head=head, rows=rows)


def _cell(kept: Mapping[str, int] | None, axis: str, units: int) -> str:
    if kept is None:
        return "left whole"
    return f"{kept[axis]:,} of {units:,}" if axis else "stays"
