"""A search for budgets: parameters move from ladder to ladder where the loss of the pruned model falls.

Starts from the best of `uniform`, `global` and `measured`. A round finds what the loss rises by when a step of parameters leaves
each ladder, and when one comes back to it; then a step is exchanged between the ladders where that promises most: between several
pairs at once, or else between two. A round without gain halves the step. Every candidate meets the budget as well as the start
does. What was found must also be better on blocks that were not searched on; else the start stays.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

from secateur.allocation.allocator import Counts, Trials
from secateur.allocation.global_ import Global
from secateur.allocation.ladder import Ladder, check_budget, removed
from secateur.allocation.measured import Measured
from secateur.allocation.uniform import Uniform
from secateur.errors import UserError

FIRST, FINEST = 1 / 4, 1 / 128
"""Of a step: parameters as a part of the mean ladder's that may leave."""

Place = tuple[int, str]
Rates = Mapping[Place, float]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Ends after `trials` losses, or where that is 0 so many seconds after the measured start. `blocks`: of that start."""

    name: ClassVar = "search"
    paper: ClassVar = ""
    standardised: ClassVar = True
    equal: ClassVar = False
    kept_states: ClassVar = 1
    seconds: float = 60.0
    trials: int = 0
    blocks: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise UserError(f"search's seconds is {self.seconds}. Allowed: a number above 0; 60 is usual.")
        if self.trials < 0:
            raise UserError(f"search's trials is {self.trials}. Allowed: whole numbers from 0; with 0 the seconds end it.")
        Measured(blocks=self.blocks)

    def decide(self, ladders: Sequence[Ladder], budget: int, trials: Trials) -> Counts:
        """Deterministic with `trials`; with `seconds` as far as the machine's speed allows."""
        check_budget(ladders, budget)
        ladders = sorted(ladders, key=lambda ladder: (ladder.layer, ladder.axis))
        measured = Measured(blocks=self.blocks).decide(ladders, budget, trials)
        tried = Losses(trials=trials, most=self.trials, end=time.monotonic() + self.seconds)
        starts = [measured, Global().allocate(ladders, budget), Uniform().allocate(ladders, budget)]
        losses = [math.inf if loss is None else loss for loss in map(tried.loss, starts)]
        start = starts[losses.index(min(losses))]
        found = self._search(Exchange.of(ladders, budget, start), start, tried)
        if found == start or trials.held_out(found) >= trials.held_out(start):
            return start
        return found

    def _search(self, exchange: "Exchange", start: Counts, tried: "Losses") -> Counts:
        kept, size, best = start, FIRST, tried.settle(start)
        while size >= FINEST and tried.more():
            rates: dict[int, dict[Place, float]] = {-1: {}, 1: {}}
            for sign, ladder in product((-1, 1), exchange.ladders):
                moved = exchange.moved(kept, ladder, size, sign)
                if moved is not None and (loss := tried.loss(moved)) is not None:
                    amount = abs(removed(exchange.ladders, moved) - removed(exchange.ladders, kept))
                    rates[sign][ladder.layer, ladder.axis] = (loss - best) / amount
            better = None
            for candidate in exchange.candidates(kept, rates[-1], rates[1], size):
                if (loss := tried.loss(candidate)) is not None and loss < best:
                    better, best = candidate, loss
                    break
            if better is None:
                size /= 2
            else:
                kept = better
                tried.settle(kept)
        return kept

    def passes(self, ladders: Sequence[Ladder], num_layers: int, samples: int) -> float:
        """Each trial runs half of the blocks; a time limit is no number of passes."""
        return Measured(blocks=self.blocks).passes(ladders, num_layers, samples) + (self.trials + 2) / 2

    def streams(self, ladders: Sequence[Ladder]) -> int:
        return Measured(blocks=self.blocks).streams(ladders)

    @property
    def time_limit(self) -> float:
        return 0.0 if self.trials else self.seconds

    @property
    def walks(self) -> int:
        return Measured(blocks=self.blocks).walks + 2


@dataclass(kw_only=True)
class Losses:
    """Losses, each found once, until there are `most` of them, or where that is 0 until the time `end`."""

    trials: Trials
    most: int
    end: float
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def more(self) -> bool:
        return len(self.known) < self.most if self.most else time.monotonic() < self.end

    def loss(self, kept: Counts) -> float | None:
        """None where it is not known and there are no more trials."""
        key = tuple(kept[at] for at in sorted(kept))
        if key not in self.known and self.more():
            self.known[key] = self.trials.loss(kept)
        return self.known.get(key)

    def settle(self, kept: Counts) -> float:
        return self.trials.loss(kept, settle=True)


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
        return cls(ladders=ladders, budget=budget, slack=max(float(abs(removed(ladders, start) - budget)), finest / 2))

    def candidates(self, kept: Counts, less: Rates, more: Rates, size: float) -> Iterator[Counts]:
        """Exchanges that promise a gain: between all pairs at once, between half of them, then one by one, the best first.

        `less`, `more`: what the loss rises by for each parameter that leaves a ladder, that comes back to one.
        """
        by = {(ladder.layer, ladder.axis): ladder for ladder in self.ladders}
        promise = {(a, b): less[a] + more[b] for a, b in product(less, more) if a != b and less[a] + more[b] < 0}
        order = sorted(promise, key=lambda pair: (promise[pair], pair))
        pairs: list[tuple[Place, Place]] = []
        for a, b in order:
            if not any(place in pair for pair in pairs for place in (a, b)):
                pairs.append((a, b))
        for many in (len(pairs), len(pairs) // 2):
            if many > 1:
                found = kept
                for a, b in pairs[:many]:
                    found = self.exchanged(found, by[a], by[b], size) or found
                yield found
        for a, b in order[: len(self.ladders)]:
            if (found := self.exchanged(kept, by[a], by[b], size)) is not None:
                yield found

    def exchanged(self, kept: Counts, less: Ladder, more: Ladder, size: float) -> Counts | None:
        """A step leaves `less` and as much comes back to `more`, so that the budget is met; None where that cannot be."""
        coarse, fine = sorted((less, more), key=_step, reverse=True)
        found = self.moved(kept, coarse, size, -1 if coarse is less else 1)
        if found is None:
            return None
        at = (fine.layer, fine.axis)
        count = fine.nearest(kept[at] + (removed(self.ladders, found) - self.budget) / fine.cost)
        if not (count < kept[at] if fine is less else count > kept[at]):
            return None
        found = {**found, at: count}
        return found if abs(removed(self.ladders, found) - self.budget) <= self.slack else None

    def moved(self, kept: Counts, ladder: Ladder, size: float, sign: int) -> Counts | None:
        """With a step more (sign 1) or less (-1) of one ladder, to the next allowed count at least; None where there is none."""
        mean = sum(x.removable for x in self.ladders) / len(self.ladders)
        count = kept[ladder.layer, ladder.axis]
        at = ladder.allowed.index(count)
        near = ladder.allowed.index(ladder.nearest(count + sign * size * mean / ladder.cost))
        to = max(near, at + 1) if sign > 0 else min(near, at - 1)
        return {**kept, (ladder.layer, ladder.axis): ladder.allowed[to]} if 0 <= to < len(ladder.allowed) else None


def _step(ladder: Ladder) -> int:
    """Parameters of the smallest step of a ladder."""
    between = (b - a for a, b in zip(ladder.allowed, ladder.allowed[1:], strict=False))
    return ladder.cost * min(between, default=ladder.size)
