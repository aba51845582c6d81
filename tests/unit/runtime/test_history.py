"""Running means, against the plain mean of everything that was seen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.runtime.history import History

CHANNELS = 5
CPU = torch.device("cpu")


def tokens(batch: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, CHANNELS, generator=generator) + 1, torch.rand(batch, length, generator=generator) > 0.3


@pytest.mark.parametrize("positions", [None, 7])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_calibration_is_the_mean_however_it_is_split(positions, sizes, padded):
    x, valid = tokens(sum(sizes), 7, len(sizes))
    history = History.empty(CHANNELS, positions, CPU)
    for part, mask in zip(x.split(sizes), valid.split(sizes), strict=True):
        history.add(part, mask if padded else None)
    weight = (valid if padded else torch.ones_like(valid)).double()
    over = (0, 1) if positions is None else (0,)
    count = weight.sum(over)
    for table, values in ((history.square, x.double().square()), (history.mean, x.double())):
        expected = (values * weight[..., None]).sum(over) / count.clamp_min(1)[..., None]
        torch.testing.assert_close(
            table.double().squeeze(0) if positions is None else table.double(), expected, rtol=1e-5, atol=1e-6
        )
    assert torch.equal(history.count, count.reshape(-1))


def test_online_follows_kept_channels_and_positions_alone():
    history = History.empty(CHANNELS, 7, CPU)
    history.add(tokens(3, 7, 0)[0], None)
    before = history.square.clone()
    x, kept = tokens(2, 4, 1)[0][..., [1, 3]], torch.tensor([1, 3])
    history.follow(x, kept, None, 0.9)
    expected = before.clone()
    expected[:4, kept] = 0.9 * before[:4, kept] + 0.1 * x.square().mean(0)
    torch.testing.assert_close(history.square, expected)


def test_positions_that_are_all_padding_keep_what_they_knew():
    history = History.empty(2, 3, CPU)
    history.add(torch.ones(1, 3, 2), None)
    valid = torch.tensor([[False, True, True]])
    history.follow(torch.full((1, 3, 2), float("nan")).masked_fill(valid[..., None], 3.0), torch.arange(2), valid, 0.5)
    assert history.square[:, 0].tolist() == [1.0, 5.0, 5.0]


def test_past_the_last_position_the_mean_over_all_stands_in():
    history = History.empty(1, 2, CPU)
    history.add(torch.tensor([[[1.0], [3.0]]]), None)
    assert history.at(torch.tensor([0, 1, 2, 9])).flatten().tolist() == [1.0, 9.0, 5.0, 5.0]


def test_with_equal_positions_both_forms_say_the_same():
    x = tokens(4, 1, 3)[0].expand(4, 6, CHANNELS)
    one, many = History.empty(CHANNELS, None, CPU), History.empty(CHANNELS, 6, CPU)
    for history in (one, many):
        history.add(x, None)
    torch.testing.assert_close(one.total(), many.total().double() / 6, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(one.fluctuation(), many.fluctuation().double() / 6, rtol=1e-5, atol=1e-6)


def test_fluctuation_is_the_variance():
    x = tokens(6, 7, 5)[0]
    history = History.empty(CHANNELS, None, CPU)
    history.add(x, None)
    torch.testing.assert_close(history.fluctuation(), x.double().flatten(0, 1).var(0, unbiased=False), rtol=1e-9, atol=1e-12)


def test_online_remembers_numbers_and_no_graph():
    history = History.empty(CHANNELS, 7, CPU)
    history.follow(tokens(3, 7, 0)[0].requires_grad_(), torch.arange(CHANNELS), None, 0.9)
    assert not any(table.requires_grad for table in history.tensors().values())
