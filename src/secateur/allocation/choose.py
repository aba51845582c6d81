"""From statistics and weights to a Plan: score every unit, build the ladders, allocate, and pick what stays."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur import axes
from secateur.allocation.allocator import Allocator
from secateur.allocation.ladder import Ladder, build_ladder, choose, widths
from secateur.axes import Kept
from secateur.criteria.criterion import Criterion, Seen, unit_scores
from secateur.criteria.unit import CoupledGroup
from secateur.families.binding import Binding
from secateur.plan import unit_cost
from secateur.streaming.finite import blame, finite
from secateur.streaming.source import Source, read_layer

# (layer, axis) -> scores of all units.
Scores = dict[tuple[int, str], Float[Tensor, " unit"]]
SeenAt = Callable[[int, str], Seen]
"""(layer, axis) -> the statistics of that axis's modules."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What may leave: which axes, of which layers, in which widths."""

    axes: tuple[str, ...]
    layers: tuple[int, ...]
    """Not protected, ascending."""
    allowed: Mapping[str, tuple[int, ...]]
    """Axis -> rungs that may stay."""

    @classmethod
    def of(
        cls, binding: Binding, *, pruned: Sequence[str], protected: Iterable[int], round_to: int, heads: Iterable[int] | None
    ) -> "Scope":
        """`heads`: total query-head counts that may stay; None for any."""
        spared = set(protected)
        allowed = {a: widths(binding.sizes[a], round_to if a == "ffn" else 1) for a in pruned}
        if heads is not None:
            per = {"kv": binding.sizes.get("group", 1), "group": binding.sizes["kv"]}
            may = set(heads)
            allowed |= {
                a: tuple(n for n in allowed[a] if n * per[a] in may or n == binding.sizes[a]) for a in per if a in allowed
            }
        layers = tuple(i for i in range(binding.num_layers) if i not in spared)
        chosen = tuple(a for a in pruned if len(allowed[a]) > 1)
        return cls(axes=chosen, layers=layers, allowed={a: allowed[a] for a in chosen})


def score(
    source: Source, scope: Scope, criterion: Criterion, seen: SeenAt, *, standardised: bool, seed: int
) -> Iterable[tuple[tuple[int, str], Float[Tensor, " unit"]]]:
    """Scores of every axis of every layer in scope; reads one coupled group at a time."""
    binding = source.binding
    for layer in scope.layers:
        for axis in scope.axes:
            names = [n for n, s in binding.layer.items() if s.mentions(axis)]
            weights = read_layer(source, layer, names)
            if not all(finite(x) for x in weights.values()):
                raise blame(source, layer)
            group = CoupledGroup.of(
                layer=layer, axis=axis, sizes=binding.sizes, specs=binding.layer, weights=weights, seed=seed
            )  # fmt: skip
            yield (layer, axis), unit_scores(criterion, group, seen(layer, axis), standardised=standardised)


def ladders(binding: Binding, scope: Scope, scores: Scores | None) -> list[Ladder]:
    """One ladder for each axis of each layer in scope; with no scores, of equal ones: enough for the budget and for `uniform`."""
    specs = tuple(binding.layer.values())
    cost = {axis: unit_cost(specs, binding.sizes, axis) for axis in scope.axes}
    blank = {axis: torch.zeros(axes.num_units(axis, binding.sizes), dtype=torch.float64) for axis in scope.axes}
    return [
        build_ladder(
            layer=layer, axis=axis, unit_scores=blank[axis] if scores is None else scores[layer, axis], sizes=binding.sizes,
            unit_cost=cost[axis], allowed=scope.allowed[axis],
        )
        for layer in scope.layers for axis in scope.axes
    ]  # fmt: skip


def counts(binding: Binding, scope: Scope, allocator: Allocator, budget: int, scores: Scores | None = None) -> dict[Any, int]:
    return allocator.allocate(ladders(binding, scope, scores), budget)


def kept_layers(binding: Binding, scope: Scope, scores: Scores, kept: Mapping[tuple[int, str], int]) -> tuple[Kept, ...]:
    """The kept units of every layer. An axis that stays whole is left out."""
    out: list[Kept] = []
    for layer in range(binding.num_layers):
        chosen: dict[str, Any] = {}
        for axis in scope.axes:
            count = kept.get((layer, axis), binding.sizes[axis])
            if count < binding.sizes[axis]:
                chosen[axis] = choose(scores[layer, axis], axis, binding.sizes, count)
        out.append(chosen)
    return tuple(out)


def layer_sizes(binding: Binding, kept: Mapping[tuple[int, str], int]) -> list[dict[str, int]]:
    """Every layer's axis sizes for counts that stay."""
    return [
        {**binding.sizes, **{axis: n for (at, axis), n in kept.items() if at == layer}} for layer in range(binding.num_layers)
    ]  # fmt: skip
