"""Wanda over every coupled matrix: a control for methods that look at more than the reader.      https://arxiv.org/abs/2306.11695

    S_u = sum over coupled matrices, sum over the unit's rows or columns, |W_ij| * ||x_j||_2

x is the input of that matrix: the normed stream for q, k, v, gate and up, the units' activations for the reader.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.moments import Moments


@dataclass(frozen=True, kw_only=True)
class WandaAll:
    """Wanda's weight x activation, summed over all matrices that a unit is part of. Biases are not counted."""

    name: ClassVar = "wanda-all"
    paper: ClassVar = "https://arxiv.org/abs/2306.11695"
    needs = frozenset({Moments})
    inputs: ClassVar[Inputs] = "coupled"
    comparable: ClassVar = False

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of weight x activation."""
        total = torch.zeros(group.num_units, dtype=torch.float64, device=group.reader.value.device)
        for matrix in group.matrices:
            norm = seen[matrix.module][Moments].sum_of_squares.sqrt()  # ||x_j||_2
            if matrix.spec.reads(group.axis):
                sums = matrix.power_sums(1) * norm
            else:
                sums = torch.cat([block.abs_() @ norm for _, block in matrix.blocks()])
            total += group.add_up(sums, group.units_along(matrix))
        return total
