"""A search for budgets: parameters move from ladder to ladder where the loss of the pruned model falls.

Starts from the best of `uniform`, `global` and `measured`. A round finds what the loss rises by when a step of parameters more
leaves each ladder, pairs the ladders where that costs most with those where it costs least, and exchanges a step between the two
of each pair: in all pairs at once, or else in half of them, down to the best pair alone. A round without gain halves the step.
Every candidate meets the budget as well as the start does. What was found must also be better on blocks that were not searched
on; else the start stays.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from secateur.allocation.allocator import Counts, Trials
from secateur.allocation.global_ import Global
from secateur.allocation.ladder import Ladder, check_budget, removed
from secateur.allocation.measured import Measured
from secateur.allocation.uniform import Uniform
from secateur.errors import UserError

FIRST, FINEST = 1 / 4, 1 / 128
"""Of a step: parameters as a part of the mean ladder's that may leave."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Ends after `trials` losses, or where that is 0 after so many seconds. `blocks`: of the measured start."""

    name: ClassVar = "search"
    paper: ClassVar = ""
    standardised: ClassVar = True
    seconds: float = 60.0
    trials: int = 0
    blocks: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise UserError(f"search's seconds is {self.seconds}. Allowed: a number above 0; 60 is usual.")
        if self.trials < 0:
            raise UserError(f"search's trials is {self.trials}. Allowed: whole numbers from 0, which leaves the seconds to end it.")
        Measured(blocks=self.blocks)

    def decide(self, ladders: Sequence[Ladder], budget: int, trials: Trials) -> Counts:
        """Deterministic with `trials`; with `seconds` as far as the machine's speed allows."""
        check_budget(ladders, budget)
        ladders = sorted(ladders, key=lambda ladder: (ladder.layer, ladder.axis))
        measured = Measured(blocks=self.blocks).decide(ladders, budget, trials)
        starts = [measured, Global().allocate(ladders, budget), Uniform().allocate(ladders, budget)]
        losses = [trials.loss(start) for start in starts]
        start = starts[losses.index(min(losses))]
        found = self._search(Exchange.of(ladders, budget, start), start, trials)
        if found == start or trials.held_out(found) >= trials.held_out(start):
            return start
        return found

    def _search(self, exchange: "Exchange", start: Counts, trials: Trials) -> Counts:
        more = self._budget()
        kept, best, size = start, trials.loss(start, settle=True), FIRST
        while size >= FINEST and more():
            slopes = {}
            for ladder in exchange.ladders:
                if (taken := exchange.taken(kept, ladder, size)) is not None and more():
                    gone = removed(exchange.ladders, taken) - removed(exchange.ladders, kept)
                    slopes[ladder.layer, ladder.axis] = (trials.loss(taken) - best) / gone
            better = None
            for candidate in exchange.candidates(kept, slopes, size):
                if not more():
                    break
                if (loss := trials.loss(candidate)) < best:
                    better, best = candidate, loss
                    break
            if better is None:
                size /= 2
            else:
                kept = better
                trials.loss(kept, settle=True)
        return kept

    def _budget(self) -> Callable[[], bool]:
        """Counts a trial at each call; false when there are no more."""
        used, end = 0, time.monotonic() + self.seconds

        def more() -> bool:
            nonlocal used
            used += 1
            return used <= self.trials if self.trials else time.monotonic() < end

        return more

    def passes(self, ladders: Sequence[Ladder], num_layers: int, samples: int) -> float:
        return Measured(blocks=self.blocks).passes(ladders, num_layers, samples) + (self.trials + 6) / 2


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Moves between ladders under a budget."""

    ladders: Sequence[Ladder]
    budget: int
    slack: float
    """Parameters by which the budget may be missed."""

    @classmethod
    def of(cls, ladders: Sequence[Ladder], budget: int, start: Counts) -> "Exchange":
        finest = min(_step(ladder) for ladder in ladders)
        return cls(ladders=ladders, budget=budget, slack=max(abs(removed(ladders, start) - budget), finest / 2))

    def taken(self, kept: Counts, ladder: Ladder, size: float) -> Counts | None:
        """A step more of one ladder gone; None where no more may leave."""
        count = self._moved(kept, ladder, size, -1)
        return None if count is None else {**kept, (ladder.layer, ladder.axis): count}

    def candidates(self, kept: Counts, slopes: dict[tuple[int, str], float], size: float) -> Iterator[Counts]:
        """Exchanges in all pairs that promise a gain, in half of them, ..., in the best pair alone."""
        known = sorted((x for x in self.ladders if (x.layer, x.axis) in slopes), key=lambda x: slopes[x.layer, x.axis])
        pairs = [
            (cheap, dear)
            for cheap, dear in zip(known, reversed(known), strict=True)
            if slopes[cheap.layer, cheap.axis] < slopes[dear.layer, dear.axis]
        ]
        many, seen = len(pairs), []
        while many:
            found = kept
            for cheap, dear in pairs[:many]:
                found = self.exchanged(found, cheap, dear, size) or found
            if found != kept and found not in seen:
                seen.append(found)
                yield found
            many //= 2

    def exchanged(self, kept: Counts, less: Ladder, more: Ladder, size: float) -> Counts | None:
        """A step leaves `less` and as much comes back to `more`, so that the budget is met; None where that cannot be."""
        coarse, fine = sorted((less, more), key=_step, reverse=True)
        to = self._moved(kept, coarse, size, -1 if coarse is less else 1)
        if to is None:
            return None
        found = {**kept, (coarse.layer, coarse.axis): to}
        at = (fine.layer, fine.axis)
        found[at] = fine.nearest(kept[at] + (removed(self.ladders, found) - self.budget) / fine.cost)
        right = found[at] < kept[at] if fine is less else found[at] > kept[at]
        return found if right and abs(removed(self.ladders, found) - self.budget) <= self.slack else None

    def _moved(self, kept: Counts, ladder: Ladder, size: float, sign: int) -> int | None:
        """The allowed count a step further, one at least."""
        mean = sum(x.removable for x in self.ladders) / len(self.ladders)
        count = kept[ladder.layer, ladder.axis]
        at = ladder.allowed.index(count)
        near = ladder.allowed.index(ladder.nearest(count + sign * size * mean / ladder.cost))
        to = max(near, at + 1) if sign > 0 else min(near, at - 1)
        return ladder.allowed[to] if 0 <= to < len(ladder.allowed) else None


def _step(ladder: Ladder) -> int:
    """Parameters of the smallest step of a ladder."""
    between = (b - a for a, b in zip(ladder.allowed, ladder.allowed[1:], strict=False))
    return ladder.cost * min(between, default=ladder.size)
