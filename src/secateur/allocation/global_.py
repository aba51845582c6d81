"""FLAP's adaptive structure (AL-AM): all units of all layers in one ranking, under one threshold.      https://arxiv.org/abs/2312.11983

    sort all units by standardised score; remove from the bottom while the parameters removed come nearest to the budget

Units are weighted by the parameters they hold (the paper: 4 d_h / 3 for a head against 1 for a channel). Differs from the
authors' code: what is allowed to stay is respected (a rounding multiple; never nothing), the unit at the threshold leaves only
if that brings the budget nearer, and ties are broken by position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from secateur.allocation.ladder import Ladder, check_budget


class Step(NamedTuple):
    """From one allowed count of a ladder down to the next. Its score is the mean of its rungs', so a ladder's steps ascend."""

    score: float
    layer: int
    axis: str
    count: int  # type: ignore[assignment]
    """What stays when the step is taken."""
    cost: int


@dataclass(frozen=True, kw_only=True)
class Global:
    """One threshold over all ladders; expects standardised scores."""

    name: ClassVar = "global"
    paper: ClassVar = "https://arxiv.org/abs/2312.11983"
    standardised: ClassVar = True
    equal: ClassVar = False

    def allocate(self, ladders: Sequence[Ladder], budget: int) -> dict[tuple[int, str], int]:
        """Misses the budget by at most half the parameters of the step at the threshold."""
        check_budget(ladders, budget)
        # The larger count first where scores are equal: a ladder is climbed down rung by rung.
        steps = sorted((s for ladder in ladders for s in descend(ladder)), key=lambda s: (s.score, s.layer, s.axis, -s.count))
        kept = {(ladder.layer, ladder.axis): ladder.size for ladder in ladders}
        gone = 0
        for step in steps:
            if gone + step.cost - budget >= budget - gone:  # stopping here is at least as near
                break
            gone += step.cost
            kept[step.layer, step.axis] = step.count
        return kept


def descend(ladder: Ladder) -> Iterator[Step]:
    """The steps of a ladder from all of it to the least that may stay."""
    for below, above in zip(ladder.allowed, ladder.allowed[1:], strict=False):
        rungs = ladder.scores[below:above]
        # min: rounding of the mean must not put a step out of order.
        score = min(max(sum(rungs) / len(rungs), rungs[-1]), rungs[0])
        yield Step(score=score, layer=ladder.layer, axis=ladder.axis, count=below, cost=len(rungs) * ladder.cost)
