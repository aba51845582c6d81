"""Ladders: what an allocator knows of the units of one axis of one layer.

A rung is what leaves or stays at once: one unit, or for the ragged axis `group` one query head of every kv head, because all kv
heads of a layer keep equally many.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from secateur import axes
from secateur.axes import Sizes
from secateur.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ladder:
    layer: int
    axis: str
    scores: tuple[float, ...]
    """Descending: the score of the rung that would be the first, second, ... to be kept."""
    cost: int
    """Parameters that leave with each rung."""
    allowed: tuple[int, ...]
    """Rungs that may be kept: ascending, at least one, and the last is all of them."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.allowed, self.allowed[1:], strict=False))
        assert ascending, f"allowed counts {self.allowed}"
        assert self.allowed[0] > 0, "a layer may not be emptied"
        assert self.allowed[-1] == self.size, f"{self.allowed[-1]} rungs allowed of {self.size}"
        assert all(a >= b for a, b in zip(self.scores, self.scores[1:], strict=False)), "scores must descend"

    @property
    def size(self) -> int:
        """Number of rungs."""
        return len(self.scores)

    @property
    def parameters(self) -> int:
        """Of all rungs."""
        return self.size * self.cost

    @property
    def removable(self) -> int:
        """Parameters that leave when as few rungs stay as may."""
        return (self.size - self.allowed[0]) * self.cost

    def nearest(self, count: float) -> int:
        """The allowed count nearest to a wanted one; of two equally near, the larger."""
        at = bisect_left(self.allowed, count)
        around = self.allowed[max(at - 1, 0) : at + 1]
        return min(around, key=lambda k: (abs(k - count), -k))


def build_ladder(
    *,
    layer: int,
    axis: str,
    unit_scores: Float[Tensor, " unit"],
    sizes: Sizes,
    unit_cost: int,
    allowed: Sequence[int] | None = None,
) -> Ladder:
    """A ladder from the scores of all units. `unit_cost`: parameters of one unit (`plan.unit_cost`). `allowed`: see `widths`.

    For a ragged axis, rung p's score is the mean over kv heads of the p-th best of each.
    """
    rows = ranked(unit_scores, axis, sizes)
    size = rows.shape[1]
    return Ladder(
        layer=layer,
        axis=axis,
        scores=tuple(rows.mean(0).tolist()),
        cost=unit_cost * rows.shape[0],
        allowed=tuple(allowed) if allowed is not None else tuple(range(1, size + 1)),
    )


def ranked(unit_scores: Float[Tensor, " unit"], axis: str, sizes: Sizes) -> Float[Tensor, "parent rung"]:
    """Scores in descending order, for each parent head on its own; one row for an axis without parent."""
    assert len(unit_scores) == axes.num_units(axis, sizes), f"{len(unit_scores)} scores for axis {axis}"
    return unit_scores.reshape(-1, sizes[axis]).sort(dim=1, descending=True).values


def choose(
    unit_scores: Float[Tensor, " unit"], axis: str, sizes: Sizes, count: int, kept_parents: Sequence[int] | None = None
) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
    """The best `count` units, ascending; of equal scores the lower index stays.

    For a ragged axis: the best `count` positions of each kv head, for those in `kept_parents` (None: all).
    """
    assert 0 < count <= sizes[axis], f"{count} of {sizes[axis]} units of {axis}"
    order = unit_scores.reshape(-1, sizes[axis]).sort(dim=1, descending=True, stable=True).indices
    rows = tuple(tuple(sorted(row)) for row in order[:, :count].tolist())
    if axis not in axes.PARENT:
        return rows[0]
    return rows if kept_parents is None else tuple(rows[parent] for parent in kept_parents)


def widths(size: int, round_to: int) -> tuple[int, ...]:
    """Counts that may be kept of `size` units: the multiples of `round_to` (at least one of them), and all."""
    if round_to < 1:
        raise UserError(f"--round-to is {round_to}. Allowed: whole numbers from 1 on.")
    return (*range(round_to, size, round_to), size)


def largest_removal(ladders: Sequence[Ladder]) -> int:
    """The most parameters that can leave."""
    return sum(ladder.removable for ladder in ladders)


def check_budget(ladders: Sequence[Ladder], budget: int) -> None:
    """Raises `UserError` if more must leave than can."""
    largest, total = largest_removal(ladders), sum(ladder.parameters for ladder in ladders)
    if budget < 0 or not ladders or budget > largest:
        share = f"at most {largest / budget:.1%} of that" if budget > 0 else "nothing"
        raise UserError(
            f"{budget:,} parameters must leave, but {share} can: {largest:,} of the {total:,} in prunable units, as every "
            "layer keeps at least one unit (or one rounding multiple) of each axis. Ask for a smaller ratio, protect fewer "
            "layers, or round to a smaller multiple."
        )


def removed(ladders: Sequence[Ladder], kept: dict[tuple[int, str], int]) -> int:
    """Parameters that leave with an allocation."""
    return sum((ladder.size - kept[ladder.layer, ladder.axis]) * ladder.cost for ladder in ladders)
