"""Curves through measured losses, and the choice they lead to."""

from dataclasses import replace
from itertools import accumulate, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocation.ladder import Ladder, removed, widths
from secateur.allocation.measured import Measured, cheapest, curved
from secateur.errors import UserError


def ladder(layer, scores, cost=1, allowed=None):
    return Ladder(
        layer=layer, axis="ffn", scores=tuple(scores), cost=cost, allowed=allowed or tuple(range(1, len(scores) + 1))
    )  # fmt: skip


def costs(curve):
    """What the loss has risen by when 0, 1, 2, ... rungs have left."""
    return [0.0, *accumulate(score * curve.cost for score in reversed(curve.scores))]


class Known:
    """Rises from a function of (layer, rungs that stay), and what was asked."""

    def __init__(self, rise, *, comparable=False):
        self.rise, self.comparable, self.asked = rise, comparable, []

    def rises(self, wanted, blocks, base=None):
        self.asked.append((list(wanted), blocks, base))
        return {tried: self.rise(tried[0], tried[2], base) for tried in wanted}

    def loss(self, kept, *, settle=False):
        raise AssertionError("measuring one at a time is all that is needed")

    held_out = loss


@given(
    scores=st.lists(st.floats(0.01, 5), min_size=8, max_size=8), slopes=st.lists(st.floats(-1, 9), min_size=2, max_size=2),
    cost=st.integers(1, 50), predicted=st.booleans(),
)  # fmt: skip
def test_a_convex_curve_passes_through_the_points(scores, slopes, cost, predicted):
    """Where slopes ascend far enough that the predicted shape between the points does not bend the envelope below them."""
    low, high = sorted(slopes)
    rises = {4: low, 1: low + (high + 5) * 600}  # after 4 and 7 rungs: steep enough for any shape of five hundredfold range
    found = costs(curved(ladder(0, sorted(scores, reverse=True), cost), rises, predicted=predicted))
    assert found[4] == pytest.approx(rises[4], abs=1e-9)
    assert found[7] == pytest.approx(rises[1])
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert all(a <= b + 1e-12 for a, b in zip(steps, steps[1:], strict=False))


def test_between_the_points_the_loss_runs_as_predicted():
    """Predicted steps 1, 3, 4, 8 (cost 2: scores half of that); measured 2 after two rungs and 14 after four."""
    found = costs(curved(ladder(0, [4.0, 2.0, 1.5, 0.5], cost=2), {2: 2.0, 0: 14.0}, predicted=True))
    assert found == pytest.approx([0, 0.5, 2, 6, 14])


def test_without_a_prediction_a_loss_starts_flat():
    """P(k) = k (k + 1) / 2: 1, 3, 6, 10."""
    found = costs(curved(ladder(0, [9.0, 9.0, 9.0, 9.0]), {2: 3.0, 0: 24.0}, predicted=False))
    assert found == pytest.approx([0, 1, 3, 12, 24])


def test_what_bends_down_is_straightened_and_a_fall_stays_a_fall():
    found = costs(curved(ladder(0, [1.0] * 4), {2: 4.0, 0: -2.0}, predicted=True))
    assert found == pytest.approx([0, -0.5, -1, -1.5, -2])


def test_a_prediction_of_nothing_is_no_division_by_zero():
    found = costs(curved(ladder(0, [0.0] * 4), {2: 1.0, 0: 3.0}, predicted=True))
    assert found == pytest.approx([0, 0.5, 1, 2, 3])


@given(
    curvature=st.lists(st.floats(0.1, 9), min_size=3, max_size=3), slope=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    budget=st.integers(0, 9),
)  # fmt: skip
def test_no_other_choice_of_the_same_size_costs_less_where_every_count_is_measured(curvature, slope, budget):
    """Against every combination; the costs are convex, some negative."""
    ladders = [ladder(i, [4.0, 3.0, 2.0, 1.0]) for i in range(3)]

    def rise(layer, count, base=None):
        return curvature[layer] * (4 - count) ** 2 + slope[layer] * (4 - count)

    kept = Measured(points=3, rounds=1).decide(ladders, budget, Known(rise))
    assert removed(ladders, kept) == budget
    least = min(sum(rise(i, n) for i, n in enumerate(ns)) for ns in product(range(1, 5), repeat=3) if 12 - sum(ns) == budget)
    assert sum(rise(i, n) for (i, _), n in kept.items()) == pytest.approx(least, abs=1e-9)


def test_where_a_head_is_too_large_channels_make_up_the_budget():
    heads = Ladder(layer=0, axis="kv", scores=(2.0, 0.2), cost=100, allowed=(1, 2))
    channels = ladder(1, [1.0, 0.9, 0.8, 0.7, 0.1], cost=10)
    assert cheapest([heads, channels], 40) == {(0, "kv"): 2, (1, "ffn"): 1}  # a whole head would miss it by 70
    assert cheapest([heads, channels], 135) == {(0, "kv"): 1, (1, "ffn"): 2}
    assert cheapest([heads, channels], 100) == {(0, "kv"): 1, (1, "ffn"): 4}  # 110 is as near as it gets from the cheapest on


def test_what_is_asked_for():
    ladders = [ladder(0, [0.0] * 9), ladder(1, [0.0] * 9, allowed=widths(9, 4)), ladder(2, [0.0, 0.0]), ladder(3, [0.0])]
    assert [Measured().counts(x) for x in ladders] == [[7, 5, 3, 1], [8, 4], [1], []]
    known = Known(lambda layer, count, base: 1.0)
    kept = Measured(blocks=5).decide(ladders[:1], 4, known)
    (first, blocks, base), (second, _, settled) = known.asked
    assert (first, blocks, base) == ([(0, "ffn", n) for n in (7, 5, 3, 1)], 5, None)
    assert second == [(0, "ffn", 9), *first]
    assert settled == kept == {(0, "ffn"): 5}


def test_a_second_round_counts_from_what_is_whole_there():
    """Alone, layer 0 seems cheap; in the pruned model it is dear. The mean of the rounds tells."""
    ladders = [ladder(i, [0.0] * 4) for i in range(2)]

    def rise(layer, count, base):
        gone = 4 - count
        return 10.0 + gone * (1.5 if layer else 5.0) if base else gone * (2.0 if layer else 1.0)

    assert Measured(points=3, rounds=1).decide(ladders, 3, Known(rise)) == {(0, "ffn"): 1, (1, "ffn"): 4}
    assert Measured(points=3, rounds=2).decide(ladders, 3, Known(rise)) == {(0, "ffn"): 4, (1, "ffn"): 1}


def test_passes_and_streams():
    """Two layers, four points: 4 forks through both layers, 4 through one; then 5 each. On half of the samples."""
    ladders = [replace(ladder(0, [0.0] * 9), layer=i) for i in range(2)]
    assert Measured(rounds=1).passes(ladders, 2, 64) == pytest.approx((1 + 4 + 2) / 2)
    assert Measured(rounds=2).passes(ladders, 2, 64) == pytest.approx((1 + 4 + 2 + 1 + 5 + 2.5) / 2)
    assert Measured(rounds=1).streams(ladders) == 9
    assert Measured(rounds=2).streams(ladders) == 11


@pytest.mark.parametrize("option", ["points", "blocks", "rounds"])
def test_none_of_something_is_refused(option):
    with pytest.raises(UserError, match=f"measured's {option} is 0. Allowed: whole numbers from 1"):
        Measured(**{option: 0})
