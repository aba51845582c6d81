import pytest
import torch

from secateur import axes
from secateur.allocation.ladder import Ladder, build_ladder, choose, widths
from secateur.errors import UserError
from secateur.plan import unit_cost

SIZES = {"hidden": 12, "kv": 2, "group": 3, "head_dim": 5, "ffn": 6}


def test_a_ladder_is_the_scores_in_descending_order():
    scores = torch.tensor([3.0, 1.0, 2.0, 9.0, 5.0, 4.0], dtype=torch.float64)
    ladder = build_ladder(layer=4, axis="ffn", unit_scores=scores, sizes=SIZES, unit_cost=36)
    assert ladder == Ladder(layer=4, axis="ffn", scores=(9.0, 5.0, 4.0, 3.0, 2.0, 1.0), cost=36, allowed=(1, 2, 3, 4, 5, 6))
    assert choose(scores, "ffn", SIZES, 3) == (3, 4, 5)


def test_a_rung_of_query_heads_is_one_of_every_kv_head():
    scores = torch.tensor([1.0, 5.0, 3.0, 20.0, 40.0, 30.0], dtype=torch.float64)  # of kv head 0, then of kv head 1
    ladder = build_ladder(layer=0, axis="group", unit_scores=scores, sizes=SIZES, unit_cost=120)
    assert ladder.scores == ((5 + 40) / 2, (3 + 30) / 2, (1 + 20) / 2)
    assert ladder.cost == 240
    assert choose(scores, "group", SIZES, 2) == ((1, 2), (1, 2))
    assert choose(scores, "group", SIZES, 1) == ((1,), (1,))
    assert choose(scores, "group", SIZES, 2, kept_parents=[1]) == ((1, 2),)


def test_kept_query_heads_are_chosen_for_each_kv_head_alone():
    scores = torch.tensor([9.0, 8.0, 0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    kept = choose(scores, "group", SIZES, 2)
    assert kept == ((0, 1), (1, 2))
    spec = axes.parse("hidden <- (kv group head_dim)")
    index = axes.dim_index(spec.dims[1], SIZES, {"group": kept})
    unit = axes.unit_index(spec.dims[1], SIZES, "group")
    assert unit[index].unique().tolist() == [0, 1, 4, 5]


def test_of_equal_scores_the_lower_index_stays():
    assert choose(torch.ones(6, dtype=torch.float64), "ffn", SIZES, 2) == (0, 1)
    assert choose(torch.ones(6, dtype=torch.float64), "group", SIZES, 1) == ((0,), (0,))


def test_the_cost_of_a_ladder_is_what_the_plan_says_its_units_cost():
    table = [
        "(kv group head_dim) <- hidden",
        "(kv head_dim) <- hidden",
        "(kv head_dim) <- hidden",
        "hidden <- (kv group head_dim)",
    ]
    specs = [axes.parse(text) for text in table]
    whole = sum(torch.zeros(axes.shape(s, SIZES)).numel() for s in specs)
    cost = unit_cost(specs, SIZES, "group")
    scores = torch.zeros(6, dtype=torch.float64)
    ladder = build_ladder(layer=0, axis="group", unit_scores=scores, sizes=SIZES, unit_cost=cost)
    left = sum(torch.zeros(axes.shape(s, {**SIZES, "group": 1})).numel() for s in specs)
    assert whole - left == 2 * ladder.cost == ladder.removable


def test_widths_are_the_multiples_and_the_whole():
    assert widths(10, 4) == (4, 8, 10)
    assert widths(8, 4) == (4, 8)
    assert widths(3, 4) == (3,)
    assert widths(3, 1) == (1, 2, 3)
    with pytest.raises(UserError, match="round-to is 0"):
        widths(3, 0)


def test_nearest_allowed_count():
    ladder = Ladder(layer=0, axis="ffn", scores=(0.0,) * 10, cost=1, allowed=(4, 8, 10))
    assert [ladder.nearest(n) for n in (0.0, 5.9, 6.0, 6.1, 9.0, 9.5, 99.0)] == [4, 4, 8, 8, 10, 10, 10]


@pytest.mark.parametrize("allowed", [(0, 2), (1,), (2, 1), ()])
def test_a_ladder_must_keep_something_and_may_keep_all(allowed):
    with pytest.raises((AssertionError, IndexError)):
        Ladder(layer=0, axis="ffn", scores=(1.0, 0.0), cost=1, allowed=allowed)
