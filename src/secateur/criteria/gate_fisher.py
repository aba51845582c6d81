"""Gate Fisher: Fisher pruning, second-order change of the loss when a gate is closed.      https://arxiv.org/abs/1801.05787

    S_u = sum_n t_nu^2

t_nu = dL_n/dm_u at m = 1, every activation of unit u multiplied by m_u. 1/(2N) of the sum is the change of the mean loss where the
model has converged, so that the first order vanishes, and its Hessian is the empirical Fisher matrix. Differs from the paper: no
1/(2N), nothing of the unit's cost in the score (the allocation knows costs), no training on while it is gathered; a sample is a
whole sequence of tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.gate_gradient import GateGradient


@dataclass(frozen=True, kw_only=True)
class GateFisher:
    name: ClassVar = "gate-fisher"
    paper: ClassVar = "https://arxiv.org/abs/1801.05787"
    needs = frozenset({GateGradient})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of the loss squared."""
        return seen[group.axis][GateGradient].squares
