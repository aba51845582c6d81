"""FLAP: fluctuation-based adaptive structured pruning.      https://arxiv.org/abs/2312.11983

    WIFV  S_j = Var_t(x_tj) * sum_i W_ij^2          (default) fluctuation, weighted by what reads it
    IFV   S_j = Var_t(x_tj)
    WIFN  S_j = mean_i |W_ij| * ||x_j||_2
    head = sum over its channels of S_j^2           (S_j without the square if `squared_heads` is off)

WIFV is exactly the squared output error of removing channel j when its mean is moved into the reader's bias. The square in
heads is the released code's. Differs from the authors' code: the variance is the unbiased one over all tokens (theirs updates
the mean before the variance step and never sees the first sample), in float64; head size and grouping are those of the model.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.errors import UserError
from secateur.statistics.moments import Moments

METRICS = ("wifv", "wifn", "ifv")


@dataclass(frozen=True, kw_only=True)
class Flap:
    name: ClassVar = "flap"
    paper: ClassVar = "https://arxiv.org/abs/2312.11983"
    needs = frozenset({Moments})
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False
    metric: str = "wifv"
    """One of `METRICS`."""
    squared_heads: bool = True

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UserError(f"flap's metric is {self.metric!r}. Allowed: {', '.join(METRICS)}.")

    def columns(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " column"]:
        """WIFV: (weight x activation)^2. IFV: activation^2. WIFN: weight x activation. Squared once more in heads."""
        moments = seen[group.reader.module][Moments]
        if self.metric == "wifv":
            metric = moments.variance * group.reader.power_sums(2)
        elif self.metric == "ifv":
            metric = moments.variance
        else:
            outputs = group.reader.oriented.shape[0]
            metric = group.reader.power_sums(1) / outputs * moments.sum_of_squares.sqrt()
        return metric.square() if self.squared_heads and group.attention else metric

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        return group.reduce(self.columns(group, seen), "sum")
