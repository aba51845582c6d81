"""The axis grammar, against coordinates looked up one by one."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import axes
from tests.contract.masking import draw_kept, naive_mask

SIZES = {"hidden": 5, "kv": 4, "group": 3, "head_dim": 2, "ffn": 6}
TEXTS = (
    "hidden", "(kv group head_dim) <- hidden", "hidden -> (3 kv head_dim)", "(kv 3 head_dim) <- hidden", "hidden <- ffn",
    "(kv group head_dim + kv head_dim + kv head_dim) <- hidden", "(2 ffn) <- hidden", "ffn -> hidden",
)  # fmt: skip


@given(st.sampled_from(TEXTS), st.sets(st.sampled_from(axes.PRUNABLE)), st.integers(0, 2**32))
def test_selecting_keeps_what_coordinates_say(text: str, pruned: set[str], seed: int):
    kept = draw_kept(SIZES, sorted(pruned, key=axes.PRUNABLE.index), random.Random(seed))
    spec = axes.parse(text)
    x = torch.arange(torch.Size(axes.shape(spec, SIZES)).numel()).reshape(axes.shape(spec, SIZES))
    expected = x
    for d, dim in enumerate(spec.dims):
        mask = naive_mask(dim, SIZES, kept)
        assert torch.equal(axes.kept_mask(dim, SIZES, kept), mask)
        expected = expected[mask] if d == 0 else expected[:, mask]
    found = axes.select(x, spec, SIZES, kept)
    assert torch.equal(found, expected)
    assert tuple(found.shape) == axes.shape(spec, axes.kept_sizes(SIZES, kept))


@pytest.mark.parametrize(
    ("text", "axis", "reads"),
    [
        ("hidden <- ffn", "ffn", True), ("ffn <- hidden", "ffn", False), ("ffn -> hidden", "ffn", True),
        ("hidden -> (3 kv head_dim)", "kv", False), ("hidden <- (kv group head_dim)", "group", True), ("ffn", "ffn", False),
    ],
)  # fmt: skip
def test_the_arrow_says_which_side_is_read(text: str, axis: str, reads: bool):
    assert axes.parse(text).reads(axis) == reads
    assert axes.parse(text).mentions(axis)


def test_units_of_query_heads_are_pairs():
    dim = axes.parse("(kv group head_dim + kv head_dim)").dims[0]
    assert axes.num_units("group", SIZES) == 12
    assert axes.unit_index(dim, SIZES, "group").tolist() == [u for u in range(12) for _ in range(2)] + [-1] * 8
    assert axes.unit_index(dim, SIZES, "kv").tolist() == [k for k in range(4) for _ in range(6)] + [
        k for k in range(4) for _ in range(2)
    ]
