"""GBLM: weight times activation and gradient norms, added.      https://arxiv.org/abs/2311.04902

    S_ij = |W_ij| ( sqrt(1/n sum_n ||x_j^(n)||^2) + alpha G_ij ),   G_ij = sqrt(sum_n g_n,ij^2)  (l2)  or  sum_n |g_n,ij|  (l1)
    unit = sum over its rows or columns, then over coupled matrices

g_n is the gradient of sample n's mean token loss. The paper is about single weights; the sum over units is ours. Differs from
the authors' code: activations are the dense model's too (theirs are measured behind pruned layers), and since `Moments` counts
tokens and not samples, n is the option `samples`: the first term is ||x_j||_2 over all tokens / sqrt(samples). It is theirs where
that is the number of calibration samples. With another number and l2 both terms grow alike, so the balance stays that of
`samples`; with l1, and in theirs, gradients weigh the more the more samples there are. `samples=1` is the paper's printed formula.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.criteria.coupling import REDUCTIONS, check_option, couple
from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup, Matrix
from secateur.errors import UserError
from secateur.statistics.moments import Moments
from secateur.statistics.weight_gradient import WeightFisher

NORMS = ("l2", "l1")


@dataclass(frozen=True, kw_only=True)
class Gblm:
    name: ClassVar = "gblm"
    paper: ClassVar = "https://arxiv.org/abs/2311.04902"
    needs = frozenset({Moments, WeightFisher})
    inputs: ClassVar[Inputs] = "coupled"
    comparable: ClassVar = False
    alpha: float = 100.0
    """Weight of the gradient, 0 or more. With 0 it is `wanda-all`."""
    norm: str = "l2"
    """One of `NORMS`: of a weight's gradients over samples."""
    samples: int = 128
    """n of the first term; the authors' number of samples."""
    reduction: str = "sum"
    """One of `REDUCTIONS`, over coupled matrices."""

    def __post_init__(self) -> None:
        check_option(self.name, "norm", self.norm, NORMS)
        check_option(self.name, "reduction", self.reduction, REDUCTIONS)
        if not 0 <= self.alpha < math.inf:
            raise UserError(f"gblm's alpha is {self.alpha}. Allowed: a finite number, 0 or more; the authors' is 100.")
        if self.samples < 1:
            raise UserError(f"gblm's samples is {self.samples}. Allowed: a whole number, 1 or more; the authors' is 128.")

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of weight x activation, which alpha gives to weight x gradient."""

        def lines(matrix: Matrix) -> Float[Tensor, " line"]:
            found = seen[matrix.module]
            norm = (found[Moments].sum_of_squares / self.samples).sqrt()
            if matrix.spec.reads(group.axis):
                activation = matrix.power_sums(1) * norm
            else:
                activation = torch.cat([block.abs_() @ norm for _, block in matrix.blocks()])
            gradient = found[WeightFisher].l2 if self.norm == "l2" else found[WeightFisher].l1
            return activation + self.alpha * gradient

        return couple(group, lines, reduction=self.reduction)
