"""The cosine of a layer's input and output against the formula, and where the formula says nothing."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from secateur.criteria.shortgpt import ShortGpt
from secateur.errors import UserError
from secateur.statistics.layer_cosine import LayerCosine, LayerCosineAccumulator


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def influence(before: torch.Tensor, after: torch.Tensor) -> float:
    return ShortGpt().influence({LayerCosine: LayerCosine.of(before, after)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_block_influence_is_one_less_the_mean_cosine(dtype: torch.dtype) -> None:
    before, after = states(3, 300, 7, dtype=dtype), states(3, 300, 7, seed=1, dtype=dtype)
    expected = 1 - cosine_similarity(before.double(), after.double(), dim=-1).mean().item()
    assert influence(before, after) == pytest.approx(expected, rel=1e-12)


def test_only_the_direction_counts() -> None:
    x = states(40, 5)
    assert influence(x, x) == pytest.approx(0, abs=1e-15)
    assert influence(x, 3 * x) == pytest.approx(0, abs=1e-15)
    assert influence(x, -x) == pytest.approx(2)
    assert influence(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])) == pytest.approx(1 - 0.5**0.5, rel=1e-6)


def test_a_state_that_is_zero_has_turned_only_if_it_is_so_no_longer() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert (influence(zero, zero), influence(zero, one), influence(one, zero)) == (0, 1, 1)


def test_large_values_do_not_overflow() -> None:
    x = torch.full((2, 4), 1e30)
    assert influence(x, x) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_values_on_either_side_are_found(bad: float, side: int) -> None:
    pair = [states(5, 3), states(5, 3, seed=1)]
    pair[side][2, 1] = bad
    with pytest.raises(UserError, match="layer 4: its layer-cosine statistic"):
        LayerCosine.of(*pair).require_finite("layer 4")


def test_no_tokens_have_no_mean() -> None:
    with pytest.raises(UserError, match="at least 1 token"):
        _ = LayerCosineAccumulator(3).result().mean
