"""Budgets from measured losses: how much the loss rises when one axis of one layer is pruned, and then the exact choice.

    C(k) = M_(j-1) + (M_j - M_(j-1)) (P(k) - P(k_(j-1))) / (P(k_j) - P(k_(j-1)))        for k_(j-1) <= k <= k_j

with k the rungs that have left, M_j the measured rise at k_j (M_0 = 0 at k_0 = 0), and P the running sum of what the criterion
predicts; where its scores predict no loss, P(k) = k (k + 1), as a loss starts flat. The last point is the least that may stay:
what 75% of an MLP's channels do can be nothing, and the rest everything. Under a budget the sum of the curves' convex envelopes
is least when the cheapest steps of all ladders leave first, which is exact up to the last step.

Losses of several prunings do not add up. Each further round measures in the model that the round before chose, where one axis of
one layer at a time is pruned otherwise than there, or not at all; M is the mean of the rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from statistics import fmean
from typing import ClassVar

import torch

from secateur.allocation.allocator import Counts, Trials, Tried
from secateur.allocation.global_ import Global, descend
from secateur.allocation.ladder import Ladder, check_budget, removed
from secateur.criteria.envelope import envelope
from secateur.errors import UserError

LEAST = 1e-9  # of a ladder's largest predicted step: what counts as nothing


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`points`: what may leave of an axis of a layer leaves in so many equal parts. `blocks`: calibration blocks it is tried on."""

    name: ClassVar = "measured"
    paper: ClassVar = ""
    standardised: ClassVar = True
    equal: ClassVar = False
    kept_states: ClassVar = 0
    time_limit: ClassVar = 0.0
    points: int = 4
    blocks: int = 32
    rounds: int = 2

    def __post_init__(self) -> None:
        for name, usual in (("points", 4), ("blocks", 32), ("rounds", 2)):
            if getattr(self, name) < 1:
                raise UserError(f"measured's {name} is {getattr(self, name)}. Allowed: whole numbers from 1; {usual} is usual.")

    def decide(self, ladders: Sequence[Ladder], budget: int, trials: Trials) -> Counts:
        """Falls short of the budget by less than the smallest step that is left, or goes over it by less than half of one."""
        check_budget(ladders, budget)
        sizes = {(ladder.layer, ladder.axis): ladder.size for ladder in ladders}
        kept: Counts | None = None
        rounds: list[dict[Tried, float]] = []
        for number in range(self.rounds):
            rises = trials.rises(self.wanted(ladders, whole=number > 0), self.blocks, kept)
            rounds.append({tried: rise - rises.get((*tried[:2], sizes[tried[:2]]), 0.0) for tried, rise in rises.items()})
            curves = []
            for ladder in ladders:
                points = {n: fmean(found[ladder.layer, ladder.axis, n] for found in rounds) for n in self.counts(ladder)}
                curves.append(curved(ladder, points, predicted=trials.comparable))
            kept = cheapest(curves, budget)
        assert kept is not None
        return kept

    def wanted(self, ladders: Sequence[Ladder], *, whole: bool = False) -> list[Tried]:
        """(layer, axis, rungs that stay) of every trial. `whole`: with all that a ladder has too."""
        own = {(x.layer, x.axis): [x.size] * whole + self.counts(x) for x in ladders}
        return [(layer, axis, count) for (layer, axis), counts in own.items() for count in counts]

    def counts(self, ladder: Ladder) -> list[int]:
        """Rungs that stay in the trials of a ladder, descending; fewer than `points` where it has few."""
        able = ladder.size - ladder.allowed[0]
        near = {ladder.nearest(ladder.size - able * i / self.points) for i in range(1, self.points + 1)}
        return sorted(near - {ladder.size}, reverse=True)

    def passes(self, ladders: Sequence[Ladder], num_layers: int, samples: int) -> float:
        total = 0.0
        for number in range(self.rounds):
            total += 1 + sum(num_layers - layer for layer, _, _ in self.wanted(ladders, whole=number > 0)) / num_layers
        return total * min(self.blocks / samples, 1.0)

    def streams(self, ladders: Sequence[Ladder]) -> int:
        return 1 + len(self.wanted(ladders, whole=self.rounds > 1))

    @property
    def walks(self) -> int:
        """Times that all weights are read."""
        return self.rounds


def curved(ladder: Ladder, rises: Mapping[int, float], *, predicted: bool) -> Ladder:
    """The ladder with the measured loss per parameter as scores. `rises`: by rungs that stay, in the loss's unit.

    `predicted`: the ladder's own scores are predicted losses per parameter, and tell how the loss runs between the points.
    """
    steps = _predicted(ladder) if predicted else [float(k + 1) for k in range(ladder.size)]
    own = [0.0, *accumulate(steps)]
    points = [(0, 0.0), *sorted((ladder.size - count, rise) for count, rise in rises.items())]
    found, factor = list[float](), 1.0
    for (a, low), (b, high) in pairwise(points):
        factor = (high - low) / (own[b] - own[a])
        found += [s * factor for s in steps[a:b]]
    found += [s * max(factor, 0.0) for s in steps[len(found) :]]  # of those that may not leave, if all were tried
    slopes = envelope(torch.tensor(found, dtype=torch.float64)) / ladder.cost
    return replace(ladder, scores=tuple(reversed(slopes.tolist())))


def cheapest(ladders: Sequence[Ladder], budget: int) -> Counts:
    """The cheapest steps of all ladders; where the next one is larger than what is missing, smaller ones that are not."""
    kept = Global().allocate(ladders, budget)
    missing = budget - removed(ladders, kept)
    steps = sorted((s for ladder in ladders for s in descend(ladder)), key=lambda s: (s.score, s.layer, s.axis, -s.count))
    full: set[tuple[int, str]] = set()
    for step in steps:
        at = (step.layer, step.axis)
        if step.count >= kept[at] or at in full:
            continue
        if step.cost > missing:
            full.add(at)  # what is below it cannot leave before it
            continue
        kept[at] = step.count
        missing -= step.cost
    return kept


def _predicted(ladder: Ladder) -> list[float]:
    """What each rung's leaving is predicted to cost, cheapest first; all above zero, so that they can be scaled."""
    steps = [score * ladder.cost for score in reversed(ladder.scores)]
    least = max(steps[-1], 0.0) * LEAST
    return [max(s, least) for s in steps] if least > 0 else [1.0] * len(steps)
