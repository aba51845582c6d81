"""Structured OBS: optimal brain surgeon on a reader's outputs, with units for weights.

https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html

    cost(u) = tr(W_u ([H^-1]_uu)^-1 W_u^T)            H = sum_t x x^T / N + lam I

by how much the reader's squared output error rises, per token, when the columns u of the reader y = W x leave and least squares
repairs the others. Units leave greedily, one at a time to the last, each where the ones before it have left and have been made
up for: `sensitivity` with F = I and without gates, and so without gradients. A unit's score is the slope of the lower convex
envelope of the path's cumulative cost over the parameters that have left, so the order of the scores is the path's order.

H is not centred, though least squares is in a reader that has a bias: what the bias repairs counts as lost.
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
from secateur.statistics.gram import Gram


@dataclass(frozen=True, kw_only=True)
class Obs:
    """Squared output error per parameter when a unit leaves and least squares repairs the rest.

    `ridge`: lam as a fraction of the mean of H's diagonal. Memory: see `greedy_path`.
    """

    name: ClassVar = "obs"
    paper: ClassVar = "https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html"
    needs: ClassVar[frozenset[type]] = frozenset({Gram})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False
    ridge: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < math.inf:
            raise UserError(f"obs's ridge is {self.ridge}. Allowed: 0 and above; 0.01 is usual.")

    def scoring_bytes(self, columns: int, outs: int) -> int:
        return path_bytes(columns)

    def scoring_flops(self, columns: int, outs: int) -> float:
        return path_flops(columns, outs, metric=False)

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of (weight x activation)^2 per token, over parameters."""
        reader = group.reader

        def weigh(dtype: torch.dtype) -> tuple[Float[Tensor, "column column"], Energy]:
            def energy(v: Float[Tensor, "column n"]) -> Float[Tensor, "n n"]:
                y = product(reader, v)
                return y.mT @ y

            return weighted(reader, None, dtype), energy

        return path_scores(group, greedy_path(group, seen[reader.module][Gram], self.ridge, weigh))
