"""Named-axis strings: the whole vocabulary of coupled structures.

A weight's shape is one string. Whitespace separates dimensions, parentheses are a product laid out in memory order, `+` inside
parentheses concatenates unequal blocks, and an arrow says which side is read:

    "(kv group head_dim) <- hidden"                               nn.Linear: out <- in (LLaMA q_proj)
    "hidden -> (3 kv head_dim)"                                   GPT-2's Conv1D: in -> out
    "(kv group head_dim + kv head_dim + kv head_dim) <- hidden"   Phi-3 qkv_proj

A *unit* is an index of a prunable axis. Query heads are special: `group` counts the query heads of one kv head, so a unit of
`group` is a pair (kv head, position), numbered `kv * group + position`, and the kept positions are listed per kept kv head.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Term = tuple[str, ...]  # a product of axis names and literal integers
Dim = tuple[Term, ...]  # a concatenation of terms
Sizes = Mapping[str, int]
# Kept indices of the pruned axes of one layer: ascending integers, and for `group` one such tuple for each kept kv head.
Kept = Mapping[str, Sequence[int] | Sequence[Sequence[int]]]

PARENT = {"group": "kv"}  # the kept indices of the left axis are chosen anew for each kept index of the right one
PRUNABLE = ("ffn", "kv", "group")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A parsed named-axis string. `inputs` are the positions of the dimensions on the reading side of the arrow."""

    text: str
    dims: tuple[Dim, ...]
    inputs: frozenset[int]

    def mentions(self, axis: str) -> bool:
        return any(axis in term for dim in self.dims for term in dim)

    def reads(self, axis: str) -> bool:
        return any(axis in term for d in self.inputs for term in self.dims[d])


@cache
def parse(text: str) -> Spec:
    dims: list[Dim] = []
    left: int | None = None
    arrow = ""
    for token in re.findall(r"\([^)]*\)|\S+", text):
        if token in ("<-", "->"):
            left, arrow = len(dims), token
        else:
            dims.append(tuple(tuple(term.split()) for term in token.strip("()").split("+")))
    sides = {"<-": range(left or 0, len(dims)), "->": range(left or 0), "": range(0)}
    return Spec(text=text, dims=tuple(dims), inputs=frozenset(sides[arrow]))


def axis_size(name: str, sizes: Sizes) -> int:
    return int(name) if name.isdigit() else sizes[name]


def term_size(term: Term, sizes: Sizes) -> int:
    return math.prod(axis_size(name, sizes) for name in term)


def dim_size(dim: Dim, sizes: Sizes) -> int:
    return sum(term_size(term, sizes) for term in dim)


def shape(spec: Spec, sizes: Sizes) -> tuple[int, ...]:
    return tuple(dim_size(dim, sizes) for dim in spec.dims)


def num_units(axis: str, sizes: Sizes) -> int:
    return sizes[axis] * sizes[PARENT[axis]] if axis in PARENT else sizes[axis]


def kept_sizes(sizes: Sizes, kept: Kept) -> dict[str, int]:
    """Axis sizes after pruning. Every row of a ragged axis has the same length: that is checked by `plan.Plan`."""
    new = {axis: len(rows[0]) if axis in PARENT else len(rows) for axis, rows in kept.items()}  # type: ignore[arg-type]
    return {**sizes, **new}


def dim_index(dim: Dim, sizes: Sizes, kept: Kept) -> Int[Tensor, " kept"] | None:
    """Positions along a dimension that stay, ascending within each term; None where nothing leaves."""
    if not any(axis in kept for term in dim for axis in term):
        return None
    blocks, start = [], 0
    for term in dim:
        blocks.append(start + _term_index(term, sizes, kept))
        start += term_size(term, sizes)
    return torch.cat(blocks)


def _term_index(term: Term, sizes: Sizes, kept: Kept) -> Int[Tensor, " kept"]:
    flat = torch.zeros(1, dtype=torch.long)
    for at, name in enumerate(term):
        size = axis_size(name, sizes)
        rows = torch.as_tensor(kept[name], dtype=torch.long) if name in kept else torch.arange(size)
        if name in PARENT and name in kept:
            # The parent axis comes just before, so the last factor of `flat` runs over its kept indices.
            assert at > 0 and term[at - 1] == PARENT[name], f"{name} must follow {PARENT[name]} in {term}"
            rows = rows.repeat(len(flat) // len(rows), 1)
        flat = (flat[:, None] * size + rows).flatten()
    return flat


def select(x: Tensor, spec: Spec, sizes: Sizes, kept: Kept) -> Tensor:
    """Keep only the kept units of every axis in `kept`, wherever `spec` mentions it."""
    for d, dim in enumerate(spec.dims):
        index = dim_index(dim, sizes, kept)
        if index is not None:
            x = x.index_select(d, index.to(x.device))
    return x


def kept_mask(dim: Dim, sizes: Sizes, kept: Kept) -> Bool[Tensor, " size"]:
    """True where a position along a dimension stays."""
    index = dim_index(dim, sizes, kept)
    if index is None:
        return torch.ones(dim_size(dim, sizes), dtype=torch.bool)
    return torch.zeros(dim_size(dim, sizes), dtype=torch.bool).index_fill_(0, index, True)


def unit_index(dim: Dim, sizes: Sizes, axis: str) -> Int[Tensor, " size"]:
    """The unit of `axis` that each position along a dimension belongs to; -1 where a term does not mention the axis.

    A term that mentions only the parent of a ragged axis (the k rows of a query head's kv head) belongs to no single unit of it.
    """
    blocks = []
    for term in dim:
        index = torch.full((1,), -1 if axis not in term else 0, dtype=torch.long)
        for name in term:
            size = axis_size(name, sizes)
            counts = axis in term and name in (axis, PARENT.get(axis))
            step = torch.arange(size) if counts else torch.zeros(size, dtype=torch.long)
            index = (index[:, None] * (size if counts else 1) + step).flatten()
        blocks.append(index)
    return torch.cat(blocks)
