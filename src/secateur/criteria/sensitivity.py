"""Sensitivity: magnitude, activation and gradient in the second-order change of the loss.      https://arxiv.org/abs/2407.11681

    cost(u) = r_u tr(F W_u ([H^-1]_uu)^-1 W_u^T) / 2N       F = sum_t g g^T,  H = sum_t x x^T / N + lam I

in nats per token: by how much the loss rises when the columns u of the reader y = W x leave and least squares repairs the others,
with g the loss gradient at y. Units leave greedily, one reader at a time, to the last; a unit's score is the slope of the lower
convex envelope of the path's cumulative cost over the parameters that have left. So the order of the scores is the path's order,
and scores of different layers and axes are compared as they are.

F and H treat tokens as independent of each other and g as independent of x. What a unit's gate does to the loss of whole samples
knows better, but is a noisy estimate: r_u is the square root of the ratio of the two where nothing is repaired,

    r_u^2 = sum_n t_nu^2 / tr(F W_u H_uu W_u^T)             t_nu = dL_n/dm_u

for heads; channels, whose own ratios are mostly noise, share that of their sums. Ours, from MINI-LLM's three ingredients; it is
not in that paper. H is not centred, though least squares is in a reader that has a bias: what the bias repairs counts as lost.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.elimination import product, weighted
from secateur.criteria.path import Energy, greedy_path, path_bytes, path_flops, path_scores
from secateur.criteria.unit import CoupledGroup
from secateur.errors import UserError
from secateur.statistics.gate_gradient import GateGradient
from secateur.statistics.gram import Gram
from secateur.statistics.output_gradient import OutputGradientGram


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Predicted rise of the loss per parameter when a unit leaves and least squares repairs the rest.

    `ridge`: lam as a fraction of the mean of H's diagonal. `damping`: of the mean of F's diagonal, added to it. `gates`: r_u
    is the ratio to this power, from 0 (F and H alone) to 1. Memory beside the statistics: two matrices [column, column],
    float64 up to 8,192 columns and float32 beyond; while H is inverted, one in float64.
    """

    name: ClassVar = "sensitivity"
    paper: ClassVar = "https://arxiv.org/abs/2407.11681"
    needs: ClassVar[frozenset[type]] = frozenset({Gram, OutputGradientGram, GateGradient})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = True
    ridge: float = 0.01
    damping: float = 0.1
    gates: float = 0.5

    def __post_init__(self) -> None:
        for name, usual in (("ridge", 0.01), ("damping", 0.1)):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"sensitivity's {name} is {getattr(self, name)}. Allowed: 0 and above; {usual} is usual.")
        if not 0 <= self.gates <= 1:
            raise UserError(f"sensitivity's gates is {self.gates}. Allowed: 0 (F and H alone) to 1; 0.5 is usual.")

    def scoring_bytes(self, columns: int, outs: int) -> int:
        return path_bytes(columns) + 12 * outs**2  # F as it is stored, and as it is used

    def scoring_flops(self, columns: int, outs: int) -> float:
        return path_flops(columns, outs, metric=True)

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of loss (nats per token) over parameters."""
        reader, statistics = group.reader, seen[group.reader.module]
        gram: Gram = statistics[Gram]
        gates: GateGradient = seen[group.axis][GateGradient]

        def weigh(dtype: torch.dtype) -> tuple[Float[Tensor, "column column"], Energy]:
            f = statistics[OutputGradientGram].matrix.to(dtype, copy=True)
            f.diagonal().add_(self.damping * f.diagonal().mean())
            a = weighted(reader, f, dtype)
            trust = gate_ratio(group, a, gram, gates).pow(self.gates / 2).to(dtype)[group.unit_of_column]

            def energy(v: Float[Tensor, "column n"]) -> Float[Tensor, "n n"]:
                y = product(reader, v * trust[:, None])
                return y.mT @ (f.double() @ y)

            return a.mul_(trust).mul_(trust[:, None]), energy

        return path_scores(group, greedy_path(group, gram, self.ridge, weigh), 2 * gram.count)


def gate_ratio(
    group: CoupledGroup, a: Float[Tensor, "column column"], gram: Gram, gates: GateGradient
) -> Float[Tensor, " unit"]:
    """sum_n t_nu^2 / tr(F W_u H_uu W_u^T) of every unit, from A = W^T F W; of the sums over units for channels. Float64."""
    if not group.attention:
        predicted = (a.diagonal().double() * gram.matrix.diagonal().double()).sum().expand(group.num_units)
        found = gates.squares.sum().expand(group.num_units)
    else:
        columns = [(group.unit_of_column == u).nonzero().flatten() for u in range(group.num_units)]
        predicted = torch.stack([(a[c][:, c].double() * gram.matrix[c][:, c].double()).sum() for c in columns])
        found = gates.squares
    predicted = predicted / gram.count
    return torch.where(predicted > 0, found.to(predicted.device) / predicted, 1.0)
