"""FMS: weight x activation x gradient per unit, our reading of MINI-LLM.      https://arxiv.org/abs/2407.11681

    product  S_ij = |g_ij W_ij| ||x_j||_2           (default), the product form that its Wanda lineage suggests
    mean     S_ij = |g_ij W_ij E_t[x_tj]|           the only published reading of the paper's Eq. 9, a third party's
    unit = sum over its rows or columns, then over coupled matrices

"Feature map sensitivity": weight ij adds W_ij x_tj to its feature map at token t, and g_ij says what the loss makes of it. The
printed form of Eq. 9 and the paper's aggregation over weights are not known to us, and no code is public; the aggregation and
its options are LLM-Pruner's. g = sum_t delta_ti x_tj holds the activation once already, so it counts twice: scaling a row of up
against its column of down leaves the model as it is and changes this score. g is of the loss summed over all samples, from any
estimator; the paper's is one that needs forward passes only.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.criteria.coupling import MATRIX_NORMS, REDUCTIONS, check_option, couple
from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.weight_gradient import WeightGradient

FORMS = {"product": "product", "mean": "average"}  # form -> the field of `WeightGradient`


@dataclass(frozen=True, kw_only=True)
class Fms:
    name: ClassVar = "fms"
    paper: ClassVar = "https://arxiv.org/abs/2407.11681"
    needs = frozenset({WeightGradient})
    inputs: ClassVar[Inputs] = "coupled"
    comparable: ClassVar = False
    form: str = "product"
    """One of `FORMS`."""
    matrix_norm: str = "none"
    """One of `MATRIX_NORMS`: what each matrix's lines are divided by. Matrices have units of their own."""
    reduction: str = "sum"
    """One of `REDUCTIONS`, over coupled matrices."""

    def __post_init__(self) -> None:
        check_option(self.name, "form", self.form, FORMS)
        check_option(self.name, "matrix_norm", self.matrix_norm, MATRIX_NORMS)
        check_option(self.name, "reduction", self.reduction, REDUCTIONS)

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Of the dimension of loss x activation; dimensionless with a `matrix_norm`."""
        field = FORMS[self.form]
        return couple(
            group, lambda m: getattr(seen[m.module][WeightGradient], field), reduction=self.reduction, matrix_norm=self.matrix_norm
        )  # fmt: skip
