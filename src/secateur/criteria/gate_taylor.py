"""Gate Taylor: first-order change of the loss when a unit's gate is closed.      https://arxiv.org/abs/1906.10771

    S_u = |sum_n t_nu|          (default) samples cancel, as in the change of the loss over all of them
    S_u = sum_n |t_nu|          samples do not cancel

t_nu = dL_n/dm_u at m = 1, every activation of unit u multiplied by m_u. Differs from the paper: its score is the square, which
ranks as the absolute value does, averaged over mini-batches while it trains on; its gates follow batch norms, here they are on
what the reader reads, and a head has one. A gate sees its unit once, where `taylor` adds up matrices that say the same number.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.coupling import check_option
from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.gate_gradient import GateGradient

SAMPLES = ("signed", "absolute")


@dataclass(frozen=True, kw_only=True)
class GateTaylor:
    name: ClassVar = "gate-taylor"
    paper: ClassVar = "https://arxiv.org/abs/1906.10771"
    needs = frozenset({GateGradient})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False
    samples: str = "signed"
    """One of `SAMPLES`."""

    def __post_init__(self) -> None:
        check_option(self.name, "samples", self.samples, SAMPLES)

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of the loss, summed over samples: nats."""
        t = seen[group.axis][GateGradient]
        return t.signed.abs() if self.samples == "signed" else t.absolute
