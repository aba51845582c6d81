"""Wanda-sp: Wanda's weight times activation, per unit.      Wanda https://arxiv.org/abs/2306.11695, structured in https://arxiv.org/abs/2312.11983

    S_j = sum_i |W_ij| * ||x_j||_2,     ||x_j||_2 = sqrt(sum_t x_tj^2),     head = sum of S_j over its channels

W is the reader. Differs from the authors' code in constants only (mean over i, mean over samples), and in that the layers
before it are not pruned when its inputs are measured.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.moments import Moments


@dataclass(frozen=True, kw_only=True)
class WandaSp:
    name: ClassVar = "wanda-sp"
    paper: ClassVar = "https://arxiv.org/abs/2306.11695"
    needs = frozenset({Moments})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False

    def columns(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " column"]:
        """Of the dimension of weight x activation."""
        norm = seen[group.reader.module][Moments].sum_of_squares.sqrt()  # ||x_j||_2
        return group.reader.power_sums(1) * norm

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        return group.reduce(self.columns(group, seen), "sum")
