"""What every registered statistic must pass."""

import pytest
import torch

from secateur.errors import UserError
from secateur.statistics import ACCUMULATORS, STATISTICS
from secateur.statistics.statistic import Accumulator, Statistic

EVERY = pytest.mark.parametrize("name", sorted(STATISTICS.names()))
CHANNELS = 11


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2


def gather(name: str, *blocks: torch.Tensor) -> Statistic:
    accumulator = ACCUMULATORS[name](CHANNELS, "cpu")
    assert isinstance(accumulator, Accumulator)
    for block in blocks:
        accumulator.update(block)
    return accumulator.result()


def same(a: Statistic, b: Statistic) -> None:
    left, right = a.to_tensors(), b.to_tensors()
    assert left.keys() == right.keys()
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=1e-11, atol=1e-11, check_dtype=False)


@EVERY
def test_every_statistic_has_an_accumulator_that_makes_it(name):
    result = gather(name, tokens(4))
    assert type(result) is STATISTICS[name]
    assert isinstance(result, Statistic)
    assert result.kind == name


@EVERY
def test_the_sum_of_the_parts_is_the_statistic_of_the_whole(name):
    x = tokens(1100)
    parts = [gather(name, part) for part in x.split([3, 0, 1, 600, 496])]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    same(total, gather(name, x))
    same(parts[3] + parts[0], parts[0] + parts[3])


@EVERY
def test_neither_block_size_nor_padding_that_is_left_out_matters(name):
    x = tokens(96).reshape(8, 12, CHANNELS)
    mask = torch.rand(8, 12, generator=torch.Generator().manual_seed(1)) > 0.3
    real = x[mask]
    same(gather(name, *(x[i][mask[i]] for i in range(8))), gather(name, real))
    same(gather(name, *real.split(1)), gather(name, real))
    same(gather(name, x), gather(name, x.flatten(0, 1)))


@EVERY
def test_saving_and_loading_gives_it_back(name):
    result = gather(name, tokens(30).float())
    loaded = type(result).from_tensors(result.to_tensors())
    for key, value in result.to_tensors().items():
        assert torch.equal(loaded.to_tensors()[key], value)


@EVERY
def test_one_bad_value_is_found_in_any_channel(name):
    for channel in range(CHANNELS):
        x = tokens(20)
        x[7, channel] = float("inf")
        with pytest.raises(UserError, match="layer 9"):
            gather(name, x).require_finite("layer 9")
    gather(name, tokens(20)).require_finite("layer 9")
