"""The weights of one layer's half for the units that a batch keeps: where each unit's rows lie, and a place to copy them to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor, nn

from secateur import axes
from secateur.axes import Sizes, Spec, Term
from secateur.runtime.selected import Selected


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The positions of each unit along one dimension of a weight, term by term.

    `tables`: [outer, unit, inner] positions, and by how much a kept unit's number is divided to find it (query heads find their
    key-value head so); or [1, 1, size] and 0 for a term that the units are no part of.
    """

    dim: int
    tables: Sequence[tuple[Int[Tensor, "_ _ _"], int]]

    @classmethod
    def of(cls, spec: Spec, sizes: Sizes, unit: str, device: torch.device) -> "Rows":
        """`unit`: "ffn", "kv", "group" or "heads"; the weight must mention its axis in one dimension."""
        mine = {"ffn": {"ffn"}, "kv": {"kv"}, "group": {"group"}, "heads": {"kv", "group"}}[unit]
        dim = next(d for d, terms in enumerate(spec.dims) if any(mine & set(term) for term in terms))
        tables, start = [], 0
        for term in spec.dims[dim]:
            size = axes.term_size(term, sizes)
            shape, divisor = _split(term, sizes, unit)
            tables.append(((start + torch.arange(size, device=device)).view(shape), divisor))
            start += size
        return cls(dim=dim, tables=tables)

    @property
    def layout(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Equal where the same units lie at the same positions."""
        return tuple((tuple(table.shape), divisor) for table, divisor in self.tables)

    def index(self, kept: Int[Tensor, " kept"]) -> Int[Tensor, " row"]:
        parts = []
        for table, divisor in self.tables:
            parts.append((table if not divisor else table.index_select(1, kept if divisor == 1 else kept // divisor)).flatten())
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _split(term: Term, sizes: Sizes, unit: str) -> tuple[tuple[int, int, int], int]:
    group = sizes.get("group", 1)
    if unit in ("ffn", "kv"):
        names, divisor = ((unit,), 1) if unit in term else ((), 0)
    elif "group" in term:
        names, divisor = ("kv", "group"), 1
    else:
        names, divisor = (("kv",), group) if unit == "heads" and "kv" in term else ((), 0)
    if not names:
        return (1, 1, axes.term_size(term, sizes)), 0
    at = term.index(names[0])
    return (
        axes.term_size(term[:at], sizes), axes.term_size(names, sizes), axes.term_size(term[at + len(names) :], sizes)
    ), divisor  # fmt: skip


def mentions(spec: Spec, unit: str) -> bool:
    return any(spec.mentions(axis) for axis in {"heads": ("kv", "group")}.get(unit, (unit,)))


@dataclass(kw_only=True)
class Scratch:
    """Places for compact weights. One for all layers, which then take turns, or one for each layer."""

    buffers: dict[tuple[str, torch.Size, torch.dtype], Tensor] = field(default_factory=dict)

    def place(self, name: str, shape: torch.Size, like: Tensor) -> Tensor:
        key = (name, shape, like.dtype)
        if key not in self.buffers:
            with torch.inference_mode(False):  # or nothing could be copied there outside of it
                self.buffers[key] = like.new_empty(shape)
        return self.buffers[key]


@dataclass(kw_only=True)
class Weights:
    """The pruned weights of one half of one layer: from the dense layer's tensors into those of its smaller copy.

    `sources`: name -> (the dense weight with the pruned dimension first, its rows, whether the weight itself has it first).
    `targets`: name -> the smaller layer's parameter. `selected`: the modules that can read rows in place, by the names of what they
    then need no copy of.
    """

    sources: Mapping[str, tuple[Tensor, Rows, bool]]
    targets: Mapping[str, nn.Parameter]
    selected: Mapping[str, Selected] = field(default_factory=dict)
    loaded: tuple[Scratch, Tensor] | None = None
    """Where, and for which kept units, the smaller layer's weights are."""

    def load(self, kept: Int[Tensor, " kept"], scratch: Scratch, *, in_place: bool = False) -> None:
        """Make the smaller layer compute with the kept units; `in_place`: without copying the rows that are `selected`."""
        indices: dict[object, Tensor] = {}
        for name, (source, rows, first) in self.sources.items():
            index = indices.get(rows.layout)
            if index is None:
                index = indices[rows.layout] = rows.index(kept)
            if name in self.selected:
                self.selected[name].index = index if in_place else None
                if in_place:
                    continue
            place = scratch.place(name, torch.Size((len(index), *source.shape[1:])), source)
            torch.index_select(source, 0, index, out=place)
            target = place if first else place.mT
            if self.targets[name].data_ptr() != target.data_ptr():
                self.targets[name].data = target
        self.loaded = None if in_place else (scratch, kept)

    def holds(self, kept: Int[Tensor, " kept"], scratch: Scratch, *, shared: bool) -> bool:
        """Whether the weights are there already. Comparing the kept units waits for a device; the same tensor needs none."""
        if shared or self.loaded is None or self.loaded[0] is not scratch:
            return False
        last = self.loaded[1]
        return last is kept or (kept.device.type == "cpu" and torch.equal(last, kept))
