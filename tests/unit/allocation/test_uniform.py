from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocation.ladder import build_ladder, removed, widths
from secateur.allocation.uniform import Uniform, UniformFloor, UniformScored


def stack(layers, heads, head_cost, ffn, channel_cost=3, round_to=1):
    sizes = {"kv": heads, "ffn": ffn}

    def ladder(layer, axis, cost, allowed):
        scores = torch.zeros(sizes[axis], dtype=torch.float64)
        return build_ladder(layer=layer, axis=axis, unit_scores=scores, sizes=sizes, unit_cost=cost, allowed=allowed)

    return [
        ladder(i, axis, cost, allowed)
        for i in range(layers)
        for axis, cost, allowed in (("kv", head_cost, None), ("ffn", channel_cost, widths(ffn, round_to)))
    ]


@given(
    layers=st.integers(1, 6), heads=st.integers(1, 32), head_cost=st.integers(1, 5000), ffn=st.integers(4, 300),
    round_to=st.sampled_from([1, 4]), ratio=st.floats(0, 0.7),
)  # fmt: skip
def test_layers_are_alike_and_channels_meet_what_heads_leave(layers, heads, head_cost, ffn, round_to, ratio):
    ladders = stack(layers, heads, head_cost, ffn, round_to=round_to)
    largest = sum(x.removable for x in ladders)
    budget = min(int(ratio * sum(x.parameters for x in ladders)), largest)
    kept = Uniform().allocate(ladders, budget)
    for axis in ("kv", "ffn"):
        assert len({kept[i, axis] for i in range(layers)}) == 1
    heads_can_be_met = heads == 1 or head_cost * heads < 3 * ffn
    if heads_can_be_met:
        assert abs(removed(ladders, kept) - budget) <= layers * 3 * round_to


def test_heads_get_the_count_nearest_to_the_fraction():
    """LLaMA-2-7B's layer: 32 heads of 4 * 128 * 4096, 11008 channels of 3 * 4096."""
    ladders = stack(32, 32, 4 * 128 * 4096, 11008, channel_cost=3 * 4096)
    total = sum(x.parameters for x in ladders)
    kept = Uniform().allocate(ladders, total // 5)
    assert kept[0, "kv"] == 26  # 25.6 is the fraction
    assert abs(removed(ladders, kept) - total / 5) <= 32 * 3 * 4096 / 2
    assert kept[0, "ffn"] < 0.8 * 11008  # the channels give what the heads keep too much


def test_a_head_stays_when_it_is_more_than_the_budget():
    """0.276 of two heads is nearer to one than to none, but one head of each layer is 3000 of the 2400 that should leave."""
    ladders = stack(3, 2, 1000, 300, channel_cost=3)
    kept = Uniform().allocate(ladders, 2400)
    assert kept[0, "kv"] == 2
    assert kept[0, "ffn"] == 300 - 267


def test_protected_layers_are_not_asked():
    ladders = [x for x in stack(4, 8, 100, 50) if x.layer not in (0, 3)]
    assert {layer for layer, _ in Uniform().allocate(ladders, 500)} == {1, 2}


def test_layers_of_different_sizes_keep_the_same_fraction():
    def channels(layer, size):
        scores = torch.zeros(size, dtype=torch.float64)
        return build_ladder(layer=layer, axis="ffn", unit_scores=scores, sizes={"ffn": size}, unit_cost=1)

    kept = Uniform().allocate([channels(0, 100), channels(1, 50)], 60)
    assert kept == {(0, "ffn"): 60, (1, "ffn"): 30}


def test_floor_removes_no_more_heads_than_the_fraction():
    """Of nine heads 4, 4.41 and 4.95 would leave."""
    ladders = stack(3, 9, 100, 450, channel_cost=4)
    total = sum(x.parameters for x in ladders)
    for ratio, nearest in ((4 / 9, 5), (0.49, 5), (0.55, 4)):
        budget = round(ratio * total)
        kept = UniformFloor().allocate(ladders, budget)
        assert kept[0, "kv"] == 5
        assert Uniform().allocate(ladders, budget)[0, "kv"] == nearest
        assert abs(removed(ladders, kept) - budget) <= 3 * 4 / 2


def test_floor_takes_a_head_more_where_channels_cannot_make_up_for_it():
    """Of ten heads 8.7 would leave, but nine channels of ten cannot make up for the ninth."""
    ladders = stack(2, 10, 100, 10, channel_cost=10)
    budget = 2 * 960  # of 2 * 1100
    assert UniformFloor().allocate(ladders, budget)[0, "kv"] == 1


def test_floor_rounds_nothing_where_there_is_one_axis():
    ladders = [x for x in stack(2, 10, 100, 10) if x.axis == "kv"]
    assert UniformFloor().allocate(ladders, 2 * 460)[0, "kv"] == Uniform().allocate(ladders, 2 * 460)[0, "kv"] == 5


@given(
    layers=st.integers(1, 3), heads=st.integers(1, 6), head_cost=st.integers(1, 60), ffn=st.integers(2, 14),
    round_to=st.sampled_from([1, 2]), ratio=st.floats(0, 0.7), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_by_score_is_the_cheapest_of_all_equal_counts_that_meet_the_budget(
    layers, heads, head_cost, ffn, round_to, ratio, seed
):
    draw = torch.Generator().manual_seed(seed)
    ladders = [
        replace(ladder, scores=descending(ladder.size, draw))
        for ladder in stack(layers, heads, head_cost, ffn, round_to=round_to)
    ]
    budget = min(int(ratio * sum(x.parameters for x in ladders)), sum(x.removable for x in ladders))
    found = UniformScored().allocate(ladders, budget)
    of = {ladder.axis: ladder.allowed for ladder in ladders}
    able = {axis: sum(x.removable for x in ladders if x.axis == axis) for axis in of}
    # The axis of the larger units is free, and the other meets what it leaves.
    first, last = sorted(of, key=lambda axis: (-{"kv": head_cost, "ffn": 3}[axis], axis))
    tried = {}
    for count in of[first]:
        left = budget - sum(x.cost * (x.size - count) for x in ladders if x.axis == first)
        if 0 <= left <= able[last]:
            nearest = min(
                of[last], key=lambda n: (abs(left - sum(x.cost * (x.size - n) for x in ladders if x.axis == last)), -n)
            )
            kept = {(i, first): count for i in range(layers)} | {(i, last): nearest for i in range(layers)}
            tried[count] = sum(x.cost * sum(x.scores[kept[x.layer, x.axis] :]) for x in ladders)
    for axis in of:
        assert len({found[i, axis] for i in range(layers)}) == 1
    if tried:
        assert tried[found[0, first]] == pytest.approx(min(tried.values()), rel=1e-9, abs=1e-9)
    else:
        assert found == Uniform().allocate(ladders, budget)


def descending(count: int, draw: torch.Generator) -> tuple[float, ...]:
    return tuple(torch.randn(count, generator=draw, dtype=torch.float64).sort(descending=True).values.tolist())


def test_by_score_heads_stay_where_channels_cost_less():
    cheap = [replace(x, scores=tuple([1.0 if x.axis == "kv" else 0.1] * x.size)) for x in stack(2, 8, 300, 800)]
    dear = [replace(x, scores=tuple([0.1 if x.axis == "kv" else 1.0] * x.size)) for x in stack(2, 8, 300, 800)]
    assert UniformScored().allocate(cheap, 2 * 900)[0, "kv"] == 8
    assert UniformScored().allocate(dear, 2 * 900)[0, "kv"] == 5
