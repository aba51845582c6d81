"""The same fraction of every layer.

The axes are settled from the one with the largest units to the one with the smallest: the first ones (heads) get the count
nearest to the uniform fraction, and the last one (MLP channels) meets what is left of the budget.

Wanda-sp, FLAP's UL-UM and LLM-Pruner remove int(p H) of H heads, never more than the fraction: `uniform-floor`. Theirs lets the
same p say how many channels leave, so that less than p leaves in all; here the channels meet the budget.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from secateur.allocation.ladder import Ladder, check_budget

Counts = dict[tuple[int, str], int]
Removals = dict[float, int]
"""Fraction kept -> parameters that leave."""


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Layers of equal size keep equal counts, so the output has one shape."""

    name: ClassVar = "uniform"
    paper: ClassVar = ""
    standardised: ClassVar = False
    equal: ClassVar = True

    def allocate(self, ladders: Sequence[Ladder], budget: int) -> Counts:
        """Misses the budget by at most half a step (1 or the rounding multiple) of the smallest units per layer."""
        check_budget(ladders, budget)
        groups = coarse_first(ladders)
        return settle(groups, [removals(group) for group in groups], budget)


@dataclass(frozen=True, kw_only=True)
class UniformFloor:
    """As `Uniform`, but heads are rounded up: no more of them leave than the fraction says."""

    name: ClassVar = "uniform-floor"
    paper: ClassVar = "https://arxiv.org/abs/2312.11983"
    standardised: ClassVar = False
    equal: ClassVar = True

    def allocate(self, ladders: Sequence[Ladder], budget: int) -> Counts:
        """Misses the budget by at most half a step (1 or the rounding multiple) of the smallest units per layer."""
        check_budget(ladders, budget)
        groups = coarse_first(ladders)
        return settle(groups, [removals(group) for group in groups], budget, floor=True)


@dataclass(frozen=True, kw_only=True)
class UniformScored:
    """Layers of equal size keep equal counts; how many heads that is and how many channels is what costs least by the scores.

    As `global` does it, a rung costs its score times its parameters. Every count of heads is tried, with the channels that meet
    the budget.
    """

    name: ClassVar = "uniform-scored"
    paper: ClassVar = ""
    standardised: ClassVar = True
    equal: ClassVar = True

    def allocate(self, ladders: Sequence[Ladder], budget: int) -> Counts:
        """Misses the budget by at most half a step (1 or the rounding multiple) of the smallest units per layer."""
        check_budget(ladders, budget)
        groups = coarse_first(ladders)
        return _cheapest(groups, [removals(group) for group in groups], budget)


def _cheapest(groups: Sequence[Sequence[Ladder]], options: Sequence[Removals], budget: int) -> Counts:
    """Of prices that are equal the count nearest to the uniform fraction. `options`: the `removals` of each group."""
    first, rest = groups[0], groups[1:]
    able = sum(ladder.removable for group in rest for ladder in group)
    gone = {fraction: removed for fraction, removed in options[0].items() if 0 <= budget - removed <= able}
    if not rest or not gone:
        return settle(groups, options, budget)
    total = sum(ladder.parameters for group in groups for ladder in group)
    share = budget * sum(ladder.parameters for ladder in first) / total
    tried = [
        {(ladder.layer, ladder.axis): ladder.nearest(fraction * ladder.size) for ladder in first}
        | _cheapest(rest, options[1:], budget - gone[fraction])
        for fraction in sorted(gone, key=lambda fraction: abs(gone[fraction] - share))
    ]
    return min(tried, key=lambda kept: sum(_price(ladder, kept) for group in groups for ladder in group))


def _price(ladder: Ladder, kept: Counts) -> float:
    return ladder.cost * sum(ladder.scores[kept[ladder.layer, ladder.axis] :], 0.0)


def coarse_first(ladders: Sequence[Ladder]) -> list[list[Ladder]]:
    """The ladders of each axis, the axis with the largest units first."""
    by_axis: dict[str, list[Ladder]] = {}
    for ladder in ladders:
        by_axis.setdefault(ladder.axis, []).append(ladder)
    return sorted(by_axis.values(), key=lambda group: (-max(ladder.cost for ladder in group), group[0].axis))


def settle(groups: Sequence[Sequence[Ladder]], options: Sequence[Removals], budget: int, *, floor: bool = False) -> Counts:
    """Counts for the first axis near the uniform fraction, the other axes by recursion; the last one meets what is left.

    A count is passed over while the other axes cannot make up for it: when the first axis is most of the layer and has few
    units, the nearest count may remove more than the whole budget. `floor`: so is one that removes more than the fraction of
    an axis which is not the last. `options`: the `removals` of each group.
    """
    first, rest = groups[0], groups[1:]
    total = sum(ladder.parameters for group in groups for ladder in group)
    share = budget * sum(ladder.parameters for ladder in first) / total if rest else float(budget)
    able = sum(ladder.removable for group in rest for ladder in group)
    gone = options[0]

    def order(fraction: float) -> tuple[float, bool, float, float]:
        left = budget - gone[fraction]
        over = floor and bool(rest) and gone[fraction] > share + 1  # a budget is rounded to whole parameters
        return float(max(-left, left - able, 0)), over, abs(gone[fraction] - share), -fraction

    best = min(gone, key=order)
    kept = {(ladder.layer, ladder.axis): ladder.nearest(best * ladder.size) for ladder in first}
    left = budget - gone[best]
    return {**kept, **(settle(rest, options[1:], min(max(left, 0), able), floor=floor) if rest else {})}


def removals(ladders: Sequence[Ladder]) -> Removals:
    """Fraction kept -> parameters that leave, for every fraction at which one of the ladders has an allowed count."""
    shapes = Counter((ladder.size, ladder.cost, ladder.allowed) for ladder in ladders)
    one_of_each = {(ladder.size, ladder.cost, ladder.allowed): ladder for ladder in ladders}
    fractions = sorted({count / size for size, _, allowed in shapes for count in allowed})
    return {
        f: sum(
            many * cost * (size - one_of_each[size, cost, allowed].nearest(f * size))
            for (size, cost, allowed), many in shapes.items()
        )
        for f in fractions
    }
