"""Magnitude: what is small matters little.      FLAP's control https://arxiv.org/abs/2312.11983, LLM-Pruner https://arxiv.org/abs/2305.11627

    S_j = ||W_:j||_2                                         reader only, as in FLAP's comparison; head = sum over its columns
    S_u = sum over u's slices, mean over matrices, |w|^p     all coupled matrices, as in LLM-Pruner (no root)

The norms of RMSNorm's gains are not folded into the weights. A head's sum of column norms is not the norm of the whole head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Norms of a unit's columns in the matrix that reads it.

    `power` is the p of the norm: 1 or 2.
    """

    name: ClassVar = "magnitude"
    paper: ClassVar = "https://arxiv.org/abs/2312.11983"
    needs = frozenset[type]()
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False
    power: int = 2

    def __post_init__(self) -> None:
        check_power(self.power)

    def columns(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " column"]:
        """Of the dimension of a weight."""
        return group.reader.power_sums(self.power).pow(1 / self.power)

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        return group.reduce(self.columns(group, seen), "sum")


@dataclass(frozen=True, kw_only=True)
class CoupledMagnitude:
    """Sum of |w|^power over a unit's rows and columns, mean over all matrices that it is part of.

    Biases are not counted.
    """

    name: ClassVar = "magnitude-coupled"
    paper: ClassVar = "https://arxiv.org/abs/2305.11627"
    needs = frozenset[type]()
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False
    power: int = 2

    def __post_init__(self) -> None:
        check_power(self.power)

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of a weight to the power."""
        slices = []
        for matrix in group.matrices:
            if matrix.spec.reads(group.axis):
                sums = matrix.power_sums(self.power)
            else:
                sums = torch.cat([block.abs_().pow_(self.power).sum(1) for _, block in matrix.blocks()])
            slices.append(group.add_up(sums, group.units_along(matrix)))
        return torch.stack(slices).mean(0)


def check_power(power: int) -> None:
    if power not in (1, 2):
        raise UserError(f"magnitude's power is {power}. Allowed: 1 (sum of magnitudes) and 2 (sum of squares).")
