"""What a pruning decided, in figures small enough to keep: kept units, what they cost, and how the scores lay."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur import axes
from secateur.allocation.choose import Scores
from secateur.axes import Kept, Sizes
from secateur.criteria.layer import LayerCriterion
from secateur.plan import Plan, parameters, unit_cost
from secateur.recipes.job import Job
from secateur.streaming.collect import Store, by_type, kinds_of
from secateur.streaming.walk import LAYER

BINS = 24
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def figures(job: Job, plan: Plan, scores: Scores, store: Store) -> dict[str, Any]:
    """`axes`: units of a layer, and parameters of one. `layers`: kept units by axis; None for a layer that left. `costs`: a row
    for each layer and axis that lost units. `scores`: see `histograms`. `influence`: of each layer, where layers were chosen."""
    specs, sizes = tuple(job.binding.layer.values()), plan.sizes
    pruned = [axis for axis in job.scope.axes if axis in sizes]
    about = {a: {"units": axes.num_units(a, sizes), "parameters": unit_cost(specs, sizes, a)} for a in pruned}
    counts = [None if i in plan.dropped else kept_counts(kept, sizes, pruned) for i, kept in enumerate(plan.layers)]
    masks = {at: kept_units(plan.layers[at[0]], sizes, at[1]) for at in scores}
    comparable = not isinstance(job.criterion, LayerCriterion) and job.criterion.comparable
    return {
        "axes": about, "layers": counts, "layer_parameters": parameters(specs, sizes),
        "costs": _costs(plan, about, scores, masks, comparable=comparable),
        "scores": {axis: histograms(scores, masks, axis, len(plan.layers)) for axis in pruned if scores},
        "influence": _influence(job, store),
    }  # fmt: skip


def kept_counts(kept: Kept, sizes: Sizes, pruned: Sequence[str]) -> dict[str, int]:
    """Units of each axis that stay in one layer."""
    return {axis: int(kept_units(kept, sizes, axis).sum()) for axis in pruned}


def kept_units(kept: Kept, sizes: Sizes, axis: str) -> Bool[Tensor, " unit"]:
    """True for the units of an axis that stay."""
    mask = torch.zeros(axes.num_units(axis, sizes), dtype=torch.bool)
    if axis not in axes.PARENT:
        mask[torch.tensor(kept.get(axis, range(sizes[axis])))] = True
        return mask
    parents = kept.get(axes.PARENT[axis], range(sizes[axes.PARENT[axis]]))
    rows = kept.get(axis, [range(sizes[axis])] * len(parents))
    for parent, row in zip(parents, rows, strict=True):
        mask[torch.tensor([parent * sizes[axis] + i for i in row])] = True  # type: ignore[operator, union-attr]
    return mask


def _costs(
    plan: Plan, about: Mapping[str, Any], scores: Scores, masks: Mapping[Any, Any], *, comparable: bool
) -> list[dict[str, Any]]:
    """`share`: of the sum of the layer's scores, where none is negative. `loss`: nats per token, where the scores predict it."""
    rows = []
    for at, values in scores.items():
        layer, axis = at
        left = values[~masks[at]]
        if not len(left):
            continue
        total, cost = float(values.sum()), about[axis]["parameters"]
        rows.append({
            "layer": layer, "axis": axis, "left": len(left), "of": len(values), "parameters": len(left) * cost,
            "share": float(left.sum()) / total if total > 0 and bool((values >= 0).all()) else None,
            "loss": float(left.sum()) * cost if comparable else None,
        })  # fmt: skip
    return rows


def histograms(scores: Scores, masks: Mapping[Any, Bool[Tensor, " unit"]], axis: str, num_layers: int) -> dict[str, Any]:
    """How the scores of an axis lay: for each layer, units that stayed and that left in each of the bins `edges`, and quantiles.

    The bins are of equal ratio where no score is negative, else of equal width between the outermost percent; the first and the
    last hold what lies beyond them.
    """
    mine = {layer: values for (layer, a), values in scores.items() if a == axis}
    pool = torch.cat(list(mine.values())).double()
    scale, edges = _edges(pool)
    layers = []
    for layer in range(num_layers):
        if layer not in mine:
            layers.append(None)
            continue
        values, stays = mine[layer].double(), masks[layer, axis]
        at = torch.bucketize(values, edges[1:-1], right=True)
        counted = {
            name: torch.bincount(at[which], minlength=BINS).tolist() for name, which in (("kept", stays), ("left", ~stays))
        }
        layers.append(counted | {"quantiles": torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()})
    return {"scale": scale, "edges": edges.tolist(), "layers": layers}


def _edges(pool: Float[Tensor, " score"]) -> tuple[str, Float[Tensor, " edge"]]:
    positive = pool[pool > 0]
    if bool((pool >= 0).all()) and len(positive) and float(positive.max()) > float(positive.min()):
        low, high = (float(torch.quantile(positive.log(), q)) for q in (0.001, 1.0))
        if high > low:
            return "log", torch.linspace(low, high, BINS + 1, dtype=torch.float64).exp()
    low, high = (float(torch.quantile(pool, q)) for q in (0.01, 0.99))
    if high <= low:
        low, high = float(pool.min()) - 0.5, float(pool.max()) + 0.5
    return "linear", torch.linspace(low, high, BINS + 1, dtype=torch.float64)


def _influence(job: Job, store: Store) -> list[float] | None:
    if not isinstance(job.criterion, LayerCriterion):
        return None
    kinds = kinds_of(job.criterion.needs)
    seen = [by_type(store.load(i, modules=[LAYER], kinds=kinds))[LAYER] for i in range(job.binding.num_layers)]
    return [job.criterion.influence(one) for one in seen]
