"""Budgets from measured losses: how much the loss rises when one axis of one layer is pruned, and then the exact choice.

    C(k) = M_(j-1) + (M_j - M_(j-1)) (P(k) - P(k_(j-1))) / (P(k_j) - P(k_(j-1)))        for k_(j-1) <= k <= k_j

with k the rungs that have left, M_j the measured rise at k_j (M_0 = 0 at k_0 = 0), and P the running sum of what the criterion
predicts; where its scores predict no loss, P(k) = k. Behind the last point the curve goes on as it
ran before it. Under a budget the sum of the curves' convex envelopes is least when the cheapest steps of all ladders leave first,
which is exact up to the last step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import ClassVar

import torch

from secateur.allocation.allocator import Counts, Trials
from secateur.allocation.global_ import Global
from secateur.allocation.ladder import Ladder, check_budget
from secateur.criteria.envelope import envelope
from secateur.errors import UserError

LEAST = 1e-9  # of a ladder's largest predicted step: what counts as nothing


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`points`: each axis of each layer is tried with i / (points + 1) of its units gone. `blocks`: calibration blocks it is tried on."""

    name: ClassVar = "measured"
    paper: ClassVar = ""
    standardised: ClassVar = True
    points: int = 3
    blocks: int = 32

    def __post_init__(self) -> None:
        for name, usual in (("points", 3), ("blocks", 32)):
            if getattr(self, name) < 1:
                raise UserError(f"measured's {name} is {getattr(self, name)}. Allowed: whole numbers from 1; {usual} is usual.")

    def decide(self, ladders: Sequence[Ladder], budget: int, trials: Trials) -> Counts:
        """Misses the budget by at most half the parameters of the step at the threshold."""
        check_budget(ladders, budget)
        rises = trials.rises(self.wanted(ladders), self.blocks)
        curves = []
        for ladder in ladders:
            known = {count: rises[ladder.layer, ladder.axis, count] for count in self.counts(ladder)}
            curves.append(curved(ladder, known, predicted=trials.comparable))
        return Global().allocate(curves, budget)

    def wanted(self, ladders: Sequence[Ladder]) -> list[tuple[int, str, int]]:
        """(layer, axis, rungs that stay) of every trial."""
        return [(ladder.layer, ladder.axis, count) for ladder in ladders for count in self.counts(ladder)]

    def counts(self, ladder: Ladder) -> list[int]:
        """Rungs that stay in the trials of a ladder, descending; fewer than `points` where it has few."""
        near = {ladder.nearest(ladder.size * (1 - i / (self.points + 1))) for i in range(1, self.points + 1)}
        return sorted(near - {ladder.size}, reverse=True)

    def passes(self, ladders: Sequence[Ladder], num_layers: int, samples: int) -> float:
        run = num_layers + sum(num_layers - layer for layer, _, _ in self.wanted(ladders))
        return run / num_layers * min(self.blocks / samples, 1.0)


def curved(ladder: Ladder, rises: Mapping[int, float], *, predicted: bool) -> Ladder:
    """The ladder with the measured loss per parameter as scores. `rises`: by rungs that stay, in the loss's unit.

    `predicted`: the ladder's own scores are predicted losses per parameter, and tell how the loss runs between the points.
    """
    steps = _predicted(ladder) if predicted else [1.0] * ladder.size
    own = [0.0, *accumulate(steps)]
    points = [(0, 0.0), *sorted((ladder.size - count, rise) for count, rise in rises.items())]
    if len(points) == 1:  # nothing of it can leave, or it was not tried
        return replace(ladder, scores=tuple(s / ladder.cost for s in reversed(steps)))
    found: list[float] = []
    factor = 0.0
    for (a, low), (b, high) in pairwise(points):
        factor = (high - low) / (own[b] - own[a])
        found += [s * factor for s in steps[a:b]]
    last, total = points[-1]
    factor = max(factor, total / own[last], 0.0)  # a fall at the end is noise, and goes on no further
    found += [s * factor for s in steps[last:]]
    slopes = envelope(torch.tensor(found, dtype=torch.float64)) / ladder.cost
    return replace(ladder, scores=tuple(reversed(slopes.tolist())))


def _predicted(ladder: Ladder) -> list[float]:
    """What each rung's leaving is predicted to cost, cheapest first; all above zero, so that they can be scaled."""
    steps = [score * ladder.cost for score in reversed(ladder.scores)]
    least = max(steps[-1], 0.0) * LEAST
    return [max(s, least) for s in steps] if least > 0 else [1.0] * len(steps)
