"""What a criterion is, and how its scores are asked for."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.criteria.envelope import ascending
from secateur.criteria.unit import CoupledGroup
from secateur.errors import UserError

# Module path inside the layer, or axis for gates -> type of statistic -> the statistic of that module, or of that axis's gates.
Seen = Mapping[str, Mapping[type, Any]]
Inputs = Literal["reader", "coupled"]


@runtime_checkable
class Criterion(Protocol):
    """A frozen dataclass that turns statistics and weights into one score per unit."""

    name: ClassVar[str]
    paper: ClassVar[str]
    inputs: ClassVar[Inputs]
    """Of whose inputs: the reader's alone, or every coupled matrix's."""
    comparable: ClassVar[bool]
    """Its scores are predicted loss per parameter: those of different layers and axes are compared as they are."""

    @property
    def needs(self) -> frozenset[type]:
        """The types of statistics it reads: a class attribute, or a property where options decide."""
        ...

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Score per unit, float64; larger = keep."""
        ...


@runtime_checkable
class ColumnCriterion(Criterion, Protocol):
    """A criterion whose score is reduced from one metric per input channel of the reader."""

    def columns(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " column"]:
        """The metric per input channel, float64, before it is reduced to units."""
        ...


@runtime_checkable
class WorkingCriterion(Criterion, Protocol):
    """A criterion whose scores take matrices of a reader's size and their factorisation: what a forecast must know."""

    def scoring_bytes(self, columns: int, outs: int) -> int:
        """Memory for a reader of this shape at the peak, beside its weights: its statistics and what is made of them."""
        ...

    def scoring_flops(self, columns: int, outs: int) -> float:
        """Operations for it; one in float64 counts two."""
        ...


def unit_scores(criterion: Criterion, group: CoupledGroup, seen: Seen, *, standardised: bool = False) -> Float[Tensor, " unit"]:
    """Scores on the CPU, float64. `standardised`: comparable between layers and axes, by `standardise` where they are not so yet.

    Raises `UserError` if a score is NaN or infinite.
    """
    scores = (standardise if standardised and not criterion.comparable else raw)(criterion, group, seen).double().cpu()
    if not scores.isfinite().all():
        number = int((~scores.isfinite()).sum())
        raise UserError(
            f"layer {group.layer}, axis {group.axis!r}: {criterion.name} gives {number} of {group.num_units} units a "
            "score that is NaN or infinite. Check the layer's weights for NaN and infinity, and use bf16 or fp32 instead of fp16."
        )
    return scores


def raw(criterion: Criterion, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
    return criterion.score(group, seen)


def standardise(criterion: Criterion, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
    """Scores without the scale of their layer, as FLAP ranks all layers together (AL-AM, steps 1 and 2).

    z = (metric - mean) / std over all input channels of the reader, with the unbiased std, and a unit's score is the mean of z
    over its channels. A criterion without a metric per channel is standardised over its units. Where all are equal, z = 0; where
    scores differ, so do those here, as rounding would not have it.
    """
    if isinstance(criterion, ColumnCriterion):
        return group.reduce(z_scores(criterion.columns(group, seen)), "mean")
    scores = criterion.score(group, seen).double().cpu()
    return ranked_as(scores, z_scores(scores))


def ranked_as(scores: Float[Tensor, " unit"], standard: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Standardised scores that differ wherever the scores do: a difference that rounding took is one unit in the last place."""
    distinct, at = scores.unique(return_inverse=True)  # ascending; NaN stays apart and is refused later
    found = torch.empty_like(distinct)
    found[at] = standard
    return ascending(found)[at]


def z_scores(values: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    values = values.double()
    centred = values - values.mean()
    std = centred.square().sum().div(max(len(values) - 1, 1)).sqrt()
    # Equal values whose mean was rounded must not become z-scores of order one.
    return centred / std if std > 1e-12 * values.abs().max() else torch.zeros_like(values)
