"""Sequential least squares: every matrix is refitted to what the pruned layers before it really give.

    min over D of  sum_t ||y_t + e_t - (W_K + D) x~_t||^2 + lam ||D||^2

x~ is the input in the pruned model, which runs beside the dense one, layer by layer; y the dense model's output of the same
matrix; e the difference of the two streams of hidden states where that output is added to them, and zero where it is not. So an
error made in one layer is made good in the next as far as its inputs can say it. lam is chosen for every matrix on held-out
calibration blocks (`regression`), which may also choose to leave the matrix as it is.

The readers of pruned units are refitted on their kept columns, and with `matrices` = all every other matrix too (q, k, v, gate,
up), where e is zero. For a dense input and e = 0 this is the least squares of `compensate` (SparseGPT's reconstruction,
https://arxiv.org/abs/2301.00774); the target y + e is ours.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.surgery.compensate import Compensated, Seen

MATRICES = ("all", "readers")


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """Where it begins, the kept columns as they are; `refit` does the rest. `ridge`: -1, chosen on held-out blocks."""

    name: ClassVar = "sequential"
    paper: ClassVar = "https://arxiv.org/abs/2301.00774"
    needs: ClassVar[frozenset[type]] = frozenset()
    needs_bias_slot: ClassVar = False
    ridge: float = -1.0
    matrices: str = "all"

    def __post_init__(self) -> None:
        if self.ridge != -1 and not 0 <= self.ridge < float("inf"):
            raise UserError(f"sequential's ridge is {self.ridge}. Allowed: 0 and above, or -1 to choose it on held-out blocks.")
        if self.matrices not in MATRICES:
            raise UserError(f"sequential's matrices is {self.matrices!r}. Allowed: {', '.join(MATRICES)}.")

    def compensate(
        self, weight: Float[Tensor, "out column"], bias: Float[Tensor, " out"] | None, keep: Int[Tensor, " kept"], seen: Seen
    ) -> Compensated:
        return weight.index_select(1, keep), bias
