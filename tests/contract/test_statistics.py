"""What every registered statistic must pass."""

import pytest
import torch

from secateur.errors import UserError
from secateur.statistics import ACCUMULATORS, STATISTICS
from secateur.statistics.gate_gradient import GateGradient
from secateur.statistics.output_gradient import OutputGradientGram
from secateur.statistics.statistic import Accumulator, Statistic
from secateur.statistics.weight_gradient import WeightFisher, WeightGradient

EVERY = pytest.mark.parametrize("name", sorted(ACCUMULATORS.names()))
CHANNELS = 11
PAIRED = {"layer-cosine"}  # gathered from what goes in and what comes out


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2


def gather(name: str, *blocks: torch.Tensor) -> Statistic:
    accumulator = ACCUMULATORS[name](CHANNELS, "cpu")
    assert isinstance(accumulator, Accumulator)
    for block in blocks:
        accumulator.update(*((block.cos(), block) if name in PAIRED else (block,)))
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


def gradient_findings() -> list:
    generator = torch.Generator().manual_seed(3)
    lines = [torch.rand(5, dtype=torch.float64, generator=generator) for _ in range(4)]
    return [
        GateGradient.of(torch.randn(6, 5, generator=generator)), OutputGradientGram.of(torch.randn(6, 5, generator=generator)),
        WeightGradient(*lines), WeightFisher(*lines),
    ]  # fmt: skip


@pytest.mark.parametrize("found", gradient_findings(), ids=lambda found: found.kind)
def test_what_gradients_are_reduced_to_is_saved_and_checked(found):
    assert STATISTICS[found.kind] is type(found)
    tensors = found.to_tensors()
    again = type(found).from_tensors(tensors)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(found, again, strict=True))
    assert found.require_finite("layer 9") is found
    for name in [name for name, x in tensors.items() if x.is_floating_point()]:
        spoiled = {k: x.clone() for k, x in tensors.items()}
        spoiled[name].view(-1)[-1] = float("nan")
        with pytest.raises(UserError, match="layer 9"):
            type(found).from_tensors(spoiled).require_finite("layer 9")


def test_gate_gradients_and_output_gradients_add_up():
    t = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for kind in (GateGradient, OutputGradientGram):
        whole, parts = kind.of(t), kind.of(t[:4]) + (kind.of(t[4:5]) + kind.of(t[5:]))
        assert type(parts) is kind
        assert whole[0] == parts[0] == 9
        for a, b in zip(whole[1:], parts[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
