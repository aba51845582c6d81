import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocation.global_ import Global
from secateur.allocation.ladder import Ladder, build_ladder, removed, widths
from tests.reference.flap_official import adaptive_threshold


def ladder(layer, axis, scores, cost, allowed=None):
    return Ladder(layer=layer, axis=axis, scores=tuple(scores), cost=cost, allowed=allowed or tuple(range(1, len(scores) + 1)))


def test_two_layers_by_hand():
    """Ascending: ffn1 -2 (3), ffn0 -1.5 (3), kv1 -1 (8), ffn0 -0.5 (3), kv0 -0.4 (8), ...; 0.35 of 59 parameters is 21."""
    ladders = [
        ladder(0, "kv", [0.8, -0.4], 8), ladder(0, "ffn", [1.2, 0.1, -0.5, -1.5], 3),
        ladder(1, "kv", [1.1, -1.0], 8), ladder(1, "ffn", [2.0, 0.6, 0.2, -0.1, -2.0], 3),
    ]  # fmt: skip
    kept = Global().allocate(ladders, round(0.35 * 59))
    assert kept == {(0, "kv"): 2, (0, "ffn"): 2, (1, "kv"): 1, (1, "ffn"): 4}  # 3 + 3 + 8 + 3 = 17 <= 21, and 25 is as far away
    assert removed(ladders, kept) == 17
    assert Global().allocate(ladders, 22)[0, "kv"] == 1  # 25 is nearer than 17


def test_is_the_released_codes_threshold_when_heads_and_channels_cost_what_they_do_there():
    """Two layers of 3 heads and 40 channels; head size 12, so 16 channels' worth. No layer runs empty, no scores tie."""
    generator = torch.Generator().manual_seed(3)
    parts = {
        (i, a): torch.randn(n, generator=generator, dtype=torch.float64) for i in (0, 1) for a, n in (("kv", 3), ("ffn", 40))
    }
    sizes, cost = {"kv": 3, "ffn": 40}, {"kv": 16, "ffn": 1}
    ladders = [build_ladder(layer=i, axis=a, unit_scores=s, sizes=sizes, unit_cost=cost[a]) for (i, a), s in parts.items()]
    scores = [s for part in parts.values() for s in part.tolist()]
    owners = [key for key, part in parts.items() for _ in part]
    weights = [float(cost[axis]) for _, axis in owners]
    for ratio in (0.1, 0.2, 0.3, 0.5):
        survive = adaptive_threshold(scores, weights, ratio)
        expected = {key: sum(s for s, owner in zip(survive, owners, strict=True) if owner == key) for key in parts}
        assert min(expected.values()) > 0
        kept = Global().allocate(ladders, round(ratio * sum(weights)))
        # The authors also remove the unit at the threshold: theirs is the same cut, one unit further.
        assert sum(kept.values()) - sum(expected.values()) in (0, 1)
        assert all(kept[key] - expected[key] in (0, 1) for key in parts)


@given(
    data=st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=12), min_size=1, max_size=5), budget=st.floats(0, 1),
)  # fmt: skip
def test_nothing_that_left_scores_above_anything_that_could_have(data, budget):
    ladders = [ladder(i, "ffn", sorted(scores, reverse=True), 1 + i % 3) for i, scores in enumerate(data)]
    kept = Global().allocate(ladders, int(budget * sum(x.removable for x in ladders)))
    gone = [s for x in ladders for s in x.scores[kept[x.layer, x.axis] :]]
    stayed = [s for x in ladders for s in x.scores[1 : kept[x.layer, x.axis]]]  # the first of each could not leave
    assert not gone or not stayed or max(gone) <= min(stayed)


def test_a_rounding_multiple_leaves_or_stays_whole():
    scores = [5.0, 4.0, 3.0, 2.5, 1.7, 1.5, 0.0]
    other = [6.0, 2.5, 2.4, 2.3, 2.2, 2.1, 2.0]
    ladders = [ladder(0, "ffn", scores, 1, widths(7, 3)), ladder(1, "ffn", other, 1, widths(7, 3))]
    assert Global().allocate(ladders, 1) == {(0, "ffn"): 6, (1, "ffn"): 7}
    assert Global().allocate(ladders, 4) == {(0, "ffn"): 3, (1, "ffn"): 7}  # 1.9 on average, against 2.0 for the single one
    assert Global().allocate(ladders, 5) == {(0, "ffn"): 3, (1, "ffn"): 6}


def test_equal_scores_are_broken_by_position():
    ladders = [ladder(i, "ffn", [0.0] * 3, 1) for i in (1, 0)]
    assert Global().allocate(ladders, 1) == {(0, "ffn"): 2, (1, "ffn"): 3}
    assert Global().allocate(ladders, 3) == {(0, "ffn"): 1, (1, "ffn"): 2}
