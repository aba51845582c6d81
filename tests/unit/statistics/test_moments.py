import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UserError
from secateur.statistics.moments import COLUMNS, Moments, MomentsAccumulator
from secateur.statistics.statistic import Accumulator, Statistic


@st.composite
def blocks(draw, count):
    """So many token blocks of one width, far from zero, some of them empty."""
    width = draw(st.integers(1, 4))
    value = st.floats(-1e3, 1e3, width=32)
    offset = draw(st.sampled_from([0.0, 1e6]))
    rows = st.lists(st.lists(value, min_size=width, max_size=width), max_size=5)
    return [torch.tensor(draw(rows), dtype=torch.float64).reshape(-1, width) + offset for _ in range(count)]


def close(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(a.m2, b.m2, rtol=1e-9, atol=1e-3 * max(a.count, 1) * 1e-3)


@given(blocks(3))
def test_monoid_laws(parts):
    a, b, c = (Moments.of(x) for x in parts)
    nothing = Moments.of(parts[0][:0])
    close((a + b) + c, a + (b + c))
    close(a + b, b + a)
    close(nothing + a, a)
    close(a + nothing, a)
    close(a + b + c, Moments.of(torch.cat(parts)))


def test_equals_the_textbook_even_far_from_zero():
    x = 1e6 + torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    accumulator = MomentsAccumulator(3)
    for part in x.split(7):
        accumulator.update(part)
    moments = accumulator.result()
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.variance, x.var(0), rtol=1e-8, atol=0)
    torch.testing.assert_close(moments.second_moment, x.square().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.sum_of_squares, x.square().sum(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_works_in_float64_whatever_the_input_is_and_leaves_it_alone(dtype):
    x = (torch.randn(50, 2 * COLUMNS + 3, generator=torch.Generator().manual_seed(1)) + 3).to(dtype)
    before = x.clone()
    accumulator = MomentsAccumulator(x.shape[1])
    accumulator.update(x[:20])
    accumulator.update(x[20:].reshape(5, 6, -1))  # [block, token, channel] is a token block too
    moments = accumulator.result()
    assert moments.mean.dtype == moments.m2.dtype == torch.float64
    torch.testing.assert_close(moments.mean, x.double().mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moments.variance, x.double().var(0), rtol=1e-12, atol=0)
    assert torch.equal(x, before)


def test_survives_saving_exactly():
    moments = Moments.of(torch.randn(9, 4))
    saved = moments.to_tensors()
    assert saved["count"].dtype == torch.int64
    loaded = Moments.from_tensors(saved)
    assert loaded.count == 9
    assert torch.equal(loaded.mean, moments.mean)
    assert torch.equal(loaded.m2, moments.m2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_and_named(bad):
    x = torch.randn(9, 300)
    assert Moments.of(x).require_finite("layer 3").count == 9
    x[4, 270] = bad
    assert not Moments.of(x).finite()
    with pytest.raises(UserError, match=r"^layer 3, mlp.down_proj: .*NaN or infinity"):
        Moments.of(x).require_finite("layer 3, mlp.down_proj")


def test_no_tokens():
    empty = MomentsAccumulator(3).result()
    assert empty.count == 0
    assert empty.finite()
    with pytest.raises(UserError, match="at least 2 tokens, and 0"):
        _ = empty.variance


def test_is_a_statistic():
    assert isinstance(Moments.of(torch.ones(1, 1)), Statistic)
    assert isinstance(MomentsAccumulator(1), Accumulator)
    assert Moments.kind == "moments"
