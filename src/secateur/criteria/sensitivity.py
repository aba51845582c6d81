"""Sensitivity: magnitude, activation and gradient in the second-order change of the loss.      docs/papers/sensitivity.md

    cost(u) = tr(F W_u ([H^-1]_uu)^-1 W_u^T) / 2N       F = sum_t g g^T,  H = sum_t x x^T / N + lam I

in nats per token: by how much the loss rises when the columns u of the reader y = W x leave and least squares repairs the others,
with g the loss gradient at y. Units leave greedily, one reader at a time, to the last; a unit's score is the slope of the lower
convex envelope of the path's cumulative cost over the parameters that have left. So the order of the scores is the path's order,
and scores of different layers and axes are compared as they are.

H is not centred, though least squares is in a reader that has a bias: what the bias repairs counts as lost here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.axes import PARENT
from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.elimination import WIDE, Inverse, eliminate, weighted
from secateur.criteria.unit import CoupledGroup
from secateur.errors import UserError
from secateur.statistics.gram import Gram
from secateur.statistics.output_gradient import OutputGradientGram


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """`ridge`: lam as a fraction of the mean of H's diagonal. `damping`: of the mean of F's diagonal, added to it.

    Memory beside the statistics: two matrices [column, column], float64 up to 8,192 columns and float32 beyond; while H is
    inverted, one in float64.
    """

    name: ClassVar = "sensitivity"
    paper: ClassVar = "https://arxiv.org/abs/2407.11681"
    needs = frozenset({Gram, OutputGradientGram})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = True
    ridge: float = 0.01
    damping: float = 0.01

    def __post_init__(self) -> None:
        for name in ("ridge", "damping"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"sensitivity's {name} is {getattr(self, name)}. Allowed: 0 and above; 0.01 is usual.")

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of loss (nats per token) over parameters."""
        reader, statistics = group.reader, seen[group.reader.module]
        dtype = torch.float64 if reader.oriented.shape[1] <= WIDE else torch.float32
        inverse = Inverse.of(statistics[Gram], self.ridge)
        b, dead = inverse.matrix.to(dtype), inverse.dead
        del inverse
        f = statistics[OutputGradientGram].matrix.to(dtype, copy=True)
        f.diagonal().add_(self.damping * f.diagonal().mean())
        a = weighted(reader, f, dtype)
        a[dead], a[:, dead] = 0, 0  # their weights act on nothing
        rows = group.sizes[PARENT[group.axis]] if group.axis in PARENT else 1
        path = eliminate(a, b, group.unit_of_column, rows=rows)
        per_rung = path.cost.view(-1, rows).sum(1) / (2 * statistics[Gram].count * rows * group.parameters_per_unit)
        scores = torch.empty_like(path.cost)
        scores[path.order] = ascending(envelope(per_rung).repeat_interleave(rows))
        return scores


def envelope(steps: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    """Slopes of the lower convex envelope of the running sum of equally wide steps: never descending, and of the same total."""
    blocks: list[tuple[float, int]] = []  # (sum, number of steps)
    for step in steps.tolist():
        total, many = step, 1
        while blocks and blocks[-1][0] * many >= total * blocks[-1][1]:
            before, also = blocks.pop()
            total, many = total + before, many + also
        blocks.append((total, many))
    return torch.cat([torch.full((many,), total / many, dtype=torch.float64) for total, many in blocks])


def ascending(slopes: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    """The slopes, strictly ascending: an equal one is the next larger float64, so that ranking gives the path's order."""
    out: list[float] = []
    for slope in slopes.tolist():
        out.append(max(slope, math.nextafter(out[-1], math.inf)) if out else slope)
    return torch.tensor(out, dtype=torch.float64)
