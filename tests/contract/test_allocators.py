"""What every registered allocator must pass."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import Allocator, TryingAllocator
from secateur.allocation.ladder import build_ladder, largest_removal, removed, widths
from secateur.errors import UserError

OPTIONS = {"search": {"trials": 12}}  # of allocators that go by the clock unless told otherwise


class Bowl:
    """A loss that is a sum of squares of what left each ladder, some more curved than others; no two axes of a layer are alike."""

    comparable = False

    def __init__(self, ladders):
        self.sizes = {(x.layer, x.axis): x.size for x in ladders}

    def part(self, layer, axis, count):
        gone = 1 - count / self.sizes[layer, axis]
        return (1 + layer % 3 + len(axis) / 2) * gone**2 - 0.1 * gone

    def rises(self, wanted, blocks, base=None):
        now = {at: (base or {}).get(at, size) for at, size in self.sizes.items()}
        return {(i, axis, n): self.part(i, axis, n) - self.part(i, axis, now[i, axis]) for i, axis, n in wanted}

    def loss(self, kept, *, settle=False):
        return sum(self.part(*at, count) for at, count in kept.items())

    held_out = loss


def made(name):
    return ALLOCATORS.create(name, OPTIONS.get(name))


def allocate(name, ladders, budget):
    allocator = made(name)
    if isinstance(allocator, TryingAllocator):
        return allocator.decide(ladders, budget, Bowl(ladders))
    return allocator.allocate(ladders, budget)


EVERY = pytest.mark.parametrize("name", sorted(ALLOCATORS.names()))


@st.composite
def stacks(draw):
    """Ladders of a few layers with heads and channels, as a model has them, some with a rounding multiple or without heads."""
    layers, heads, group = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    ffn, round_to = draw(st.integers(2, 60)), draw(st.sampled_from([1, 1, 8]))
    axis = draw(st.sampled_from(["kv", "group", None]))
    seed = draw(st.integers(0, 10**6))
    sizes = {"kv": heads, "group": group, "ffn": ffn}
    generator = torch.Generator().manual_seed(seed)

    def ladder(layer, axis, units, cost, allowed):
        scores = torch.randn(units, generator=generator, dtype=torch.float64)
        return build_ladder(layer=layer, axis=axis, unit_scores=scores, sizes=sizes, unit_cost=cost, allowed=allowed)

    out = []
    for layer in range(layers):
        if axis is not None:
            units = heads if axis == "kv" else heads * group
            out.append(ladder(layer, axis, units, draw(st.integers(1, 3)) * 100, None))
        out.append(ladder(layer, "ffn", ffn, 30, widths(ffn, round_to)))
    return out


def largest_step(ladders):
    """Parameters of the largest step that an allocator can be off by: one unit, or one rounding multiple."""
    return max((above - below) * x.cost for x in ladders for below, above in zip((0, *x.allowed), x.allowed, strict=False))


@EVERY
def test_says_what_it_is(name):
    allocator = ALLOCATORS[name]()
    assert isinstance(allocator, Allocator) != isinstance(allocator, TryingAllocator)
    assert allocator.name == name
    assert ALLOCATORS[name].__dataclass_params__.frozen
    assert dataclasses.is_dataclass(allocator)


@EVERY
@given(ladders=stacks(), ratio=st.floats(0, 1))
def test_meets_the_budget_within_a_unit_and_keeps_what_it_may(name, ladders, ratio):
    budget = int(ratio * largest_removal(ladders))
    kept = allocate(name, ladders, budget)
    assert kept.keys() == {(x.layer, x.axis) for x in ladders}
    for ladder in ladders:
        assert kept[ladder.layer, ladder.axis] in ladder.allowed
    layers = len({x.layer for x in ladders})
    assert abs(removed(ladders, kept) - budget) <= layers * largest_step(ladders)


@EVERY
@given(ladders=stacks())
def test_removes_nothing_or_everything_removable_when_told_to(name, ladders):
    assert allocate(name, ladders, 0) == {(x.layer, x.axis): x.size for x in ladders}
    assert allocate(name, ladders, largest_removal(ladders)) == {(x.layer, x.axis): x.allowed[0] for x in ladders}


@EVERY
@given(ladders=stacks(), ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_larger_ratio_removes_no_less(name, ladders, ratios):
    low, high = sorted(int(r * largest_removal(ladders)) for r in ratios)
    slack = 0 if name == "global" else len({x.layer for x in ladders}) * largest_step(ladders)
    assert removed(ladders, allocate(name, ladders, low)) <= removed(ladders, allocate(name, ladders, high)) + slack


@EVERY
@given(ladders=stacks(), ratio=st.floats(0, 1), order=st.randoms(use_true_random=False))
def test_is_deterministic_whatever_the_order_of_the_ladders(name, ladders, ratio, order):
    budget = int(ratio * largest_removal(ladders))
    first = allocate(name, ladders, budget)
    shuffled = list(ladders)
    order.shuffle(shuffled)
    assert allocate(name, shuffled, budget) == first


@EVERY
def test_an_impossible_budget_says_what_is_possible(name):
    scores = torch.zeros(10, dtype=torch.float64)
    ladders = [
        build_ladder(layer=i, axis="ffn", unit_scores=scores, sizes={"ffn": 10}, unit_cost=100, allowed=widths(10, 4))
        for i in range(2)
    ]
    assert allocate(name, ladders, 1200) == {(0, "ffn"): 4, (1, "ffn"): 4}
    with pytest.raises(UserError, match=r"1,600 parameters must leave, but at most 75\.0% of that can: 1,200 of the 2,000"):
        allocate(name, ladders, 1600)
    with pytest.raises(UserError, match="1 parameters must leave"):
        allocate(name, [], 1)
