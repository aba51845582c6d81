"""Taylor: LLM-Pruner's estimate of what the loss becomes without a unit.      https://arxiv.org/abs/2305.11627

    element  sum |g_ij W_ij|                        (default) Element^1
    vector   |sum g_ij W_ij|                        Vector: signed within a row or column, absolute outside of it
    second   sum W_ij^2 F_ij                        Element^2 by the diagonal F of the empirical Fisher matrix
    mixed    sum |g_ij W_ij - W_ij^2 F_ij / 2|      both orders; W -> 0 changes the loss by -g W + h W^2 / 2

over the elements of a row of q, k, v, gate and up and a column of o and down; added up over coupled matrices, then over a head's
channels. element and vector: g is the gradient of the loss summed over all samples, so samples cancel before |.|, as in the
authors' code but for a constant. second and mixed: F_ij = mean_n g_n,ij^2 and g = mean_n g_n of the samples' mean token losses.

Differs from the authors' code: under grouped queries it folds the lines of q and o onto kv heads by stride, which credits
the wrong head; here each goes to its own. Biases are not counted. `vector` repeats itself: where up has no bias, a channel's row
of up and its column of down say the same number, which is that of `gate-taylor`.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.coupling import REDUCTIONS, check_option, couple
from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup, Matrix
from secateur.statistics.weight_gradient import WeightFisher, WeightGradient

FIRST, SECOND = ("element", "vector"), ("second", "mixed")


@dataclass(frozen=True, kw_only=True)
class Taylor:
    name: ClassVar = "taylor"
    paper: ClassVar = "https://arxiv.org/abs/2305.11627"
    inputs: ClassVar[Inputs] = "coupled"
    comparable: ClassVar = False
    form: str = "element"
    """`element`, `vector`, `second` or `mixed`."""
    reduction: str = "sum"
    """One of `REDUCTIONS`, over coupled matrices."""

    def __post_init__(self) -> None:
        check_option(self.name, "form", self.form, FIRST + SECOND)
        check_option(self.name, "reduction", self.reduction, REDUCTIONS)

    @property
    def needs(self) -> frozenset[type]:
        return frozenset({WeightGradient if self.form in FIRST else WeightFisher})

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of the loss."""

        def lines(matrix: Matrix) -> Float[Tensor, " line"]:
            found = seen[matrix.module]
            if self.form in SECOND:
                return getattr(found[WeightFisher], self.form)
            gradient = found[WeightGradient]
            return gradient.absolute if self.form == "element" else gradient.signed.abs()

        return couple(group, lines, reduction=self.reduction)
