"""Compensation of a reader for the columns that left it: y = W_K x_K + W_D x_D + b must be said with x_K alone.

    none            y' = W_K x_K + b
    bias            b' = b + W_D mu_D                                   FLAP, https://arxiv.org/abs/2312.11983
    least squares   W_K' = W_K + W_D G_DK (G_KK + lam I)^-1             G the Gram matrix of x over the calibration tokens

Least squares minimises the squared error of y plus lam ||W_K' - W_K||^2: the ridge pulls towards the original weights. A
reader that has a bias gets the regression with intercept: G centred, G - N mu mu^T, and b' = b + W mu - W_K' mu_K. For a given
kept set and lam = 0 this is SparseGPT's optimal reconstruction (https://arxiv.org/abs/2301.00774, equation 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.surgery.normal_equations import NormalEquations

ROWS = 512  # of a weight that are converted at a time

# Type of statistic -> the statistic of the reader's input.
Seen = Mapping[type, Any]
Compensated = tuple[Float[Tensor, "out kept"], Float[Tensor, " out"] | None]


@runtime_checkable
class Compensation(Protocol):
    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[type]]
    needs_bias_slot: ClassVar[bool]
    """The reader must be able to have a bias."""

    def compensate(
        self, weight: Float[Tensor, "out column"], bias: Float[Tensor, " out"] | None, keep: Int[Tensor, " kept"], seen: Seen
    ) -> Compensated:
        """The reader's new weight and bias. `keep`: columns that stay, ascending. Nothing given is written to."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoCompensation:
    """The kept columns as they are, in their own dtype."""

    name: ClassVar = "none"
    paper: ClassVar = ""
    needs: ClassVar[frozenset[type]] = frozenset()
    needs_bias_slot: ClassVar = False

    def compensate(
        self, weight: Float[Tensor, "out column"], bias: Float[Tensor, " out"] | None, keep: Int[Tensor, " kept"], seen: Seen
    ) -> Compensated:
        return weight.index_select(1, keep), bias


@dataclass(frozen=True, kw_only=True)
class BiasCompensation:
    """What the removed inputs contribute on average moves into the bias; the weight keeps its dtype, the bias is float64."""

    name: ClassVar = "bias"
    paper: ClassVar = "https://arxiv.org/abs/2312.11983"
    needs: ClassVar[frozenset[type]] = frozenset({Moments})
    needs_bias_slot: ClassVar = True

    def compensate(
        self, weight: Float[Tensor, "out column"], bias: Float[Tensor, " out"] | None, keep: Int[Tensor, " kept"], seen: Seen
    ) -> Compensated:
        shift = product(weight, seen[Moments].mean.index_fill(0, keep, 0.0))  # W_D mu_D
        return weight.index_select(1, keep), shift if bias is None else bias.double() + shift


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """The kept columns say what the removed ones said, as well as they can.

    `ridge`: lam as a fraction of what is `typical` of the diagonal of G_KK. The weight becomes float32, or float64 where it was.
    Memory beside the arguments: one float64 matrix [kept, kept], the result, and some blocks of 512 rows.
    """

    name: ClassVar = "least-squares"
    paper: ClassVar = "https://arxiv.org/abs/2301.00774"
    needs: ClassVar[frozenset[type]] = frozenset({Moments, Gram})
    needs_bias_slot: ClassVar = False
    ridge: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise UserError(f"least-squares' ridge is {self.ridge}. Allowed: 0 and above; 0.01 is usual.")

    def compensate(
        self, weight: Float[Tensor, "out column"], bias: Float[Tensor, " out"] | None, keep: Int[Tensor, " kept"], seen: Seen
    ) -> Compensated:
        """Raises `UserError` if the Gram matrix is no such matrix: not finite, or far from positive semidefinite."""
        if len(keep) == weight.shape[1]:
            return weight, bias
        moments: Moments = seen[Moments]
        equations = NormalEquations.of(seen[Gram], moments if bias is not None else None)
        kept = equations.reconstruct(weight, keep, self.ridge)
        if bias is None:
            return kept, None
        return kept, bias.double() + product(weight, moments.mean) - product(kept, moments.mean[keep])


def product(weight: Float[Tensor, "out column"], vector: Float[Tensor, " column"]) -> Float[Tensor, " out"]:
    """W v in float64, without a float64 copy of W."""
    return torch.cat([rows.double() @ vector for rows in weight.split(ROWS)])


def relative_error(
    weight: Float[Tensor, "out column"], kept_weight: Float[Tensor, "out kept"], keep: Int[Tensor, " kept"], gram: Gram
) -> float:
    """Squared error of the reader's output over the calibration tokens, over its squared size: tr(E G E^T) / tr(W G W^T).

    E = W - W' with zeros for the columns that left. As much arithmetic as gathering the matrix from `out` tokens.
    """
    error = energy = 0.0
    for rows in range(0, len(weight), ROWS):
        w = weight[rows : rows + ROWS].double()
        e = w.index_add(1, keep, kept_weight[rows : rows + ROWS].double(), alpha=-1)
        for at in range(0, w.shape[1], ROWS):
            columns = gram.matrix[:, at : at + ROWS].double()
            error += float(((e @ columns) * e[:, at : at + ROWS]).sum())
            energy += float(((w @ columns) * w[:, at : at + ROWS]).sum())
    return error / energy if energy else 0.0
