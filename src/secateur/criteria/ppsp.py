"""PPsp, the static score of Probe Pruning.      https://arxiv.org/abs/2502.15618

    S_j = c_j * sqrt(sum_i W_ij^4),     c_j = mean_t x_tj^2,     head = l2 norm of S_j over its channels

that is the l2 norm over outputs of c_j W_ij^2. Differs from the authors' code in a constant only: c there is the sum over
positions of the mean over samples. The per-batch form belongs to `runtime`.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.moments import Moments


@dataclass(frozen=True, kw_only=True)
class PPsp:
    name: ClassVar = "ppsp"
    paper: ClassVar = "https://arxiv.org/abs/2502.15618"
    needs = frozenset({Moments})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False

    def columns(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " column"]:
        """Of the dimension of (weight x activation)^2."""
        c = seen[group.reader.module][Moments].second_moment
        return c * group.reader.power_sums(4).sqrt()

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        return group.reduce(self.columns(group, seen), "l2")
