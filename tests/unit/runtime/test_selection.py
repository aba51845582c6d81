"""Which part of a batch is probed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import Probe, ProbePruning, UserError
from secateur.runtime.selection import counts, select

PAPER = ProbePruning.paper().probe


@pytest.mark.parametrize(
    ("batch", "length", "expected"),
    [(20, 1024, (1, 512)), (21, 1024, (2, 512)), (8, 48, (1, 24)), (1, 2, (1, 2)), (1, 1, (1, 1))],
)
def test_the_paper_probes_half_the_positions_of_one_sample_in_twenty(batch, length, expected):
    assert counts(batch, length, PAPER) == expected


@pytest.mark.parametrize(
    ("batch", "length", "expected"),
    [
        (20, 1024, (1, 512)),  # 2.5% of the batch, which is what the fractions say too
        (20, 128, (1, 64)),
        (8, 128, (1, 64)),  # `least`, as 2.5% are 26 tokens
        (1, 512, (1, 64)),
        (20, 16, (4, 16)),  # one sample has no 64 tokens
        (1, 16, (1, 16)),
    ],
)
def test_serving_has_a_floor_and_a_ceiling_in_tokens(batch, length, expected):
    assert counts(batch, length, Probe()) == expected


@given(st.integers(1, 40), st.integers(1, 300), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 500))
def test_a_probe_is_part_of_the_batch_and_not_less_than_its_floor(batch, length, tokens, samples, least):
    found = counts(batch, length, Probe(tokens=tokens, samples=samples, least=least))
    assert 1 <= found[0] <= batch and 1 <= found[1] <= length
    assert found[0] * found[1] >= min(least, batch * length)


def stream(energy: list[list[float]]) -> torch.Tensor:
    """States of which the norms are given."""
    return torch.tensor(energy)[..., None] * torch.tensor([0.6, 0.8])


def test_tokens_first_and_samples_first_differ():
    half = {"tokens": 0.5, "samples": 0.3, "least": 1, "most": 1.0}
    x = stream([[9, 2, 1, 1], [1, 6, 5, 1], [1, 1, 5, 6]])
    tokens = select(x, None, Probe(**half))
    samples = select(x, None, Probe(**half, order="samples"))
    assert (tokens.samples.tolist(), tokens.tokens.tolist()) == ([0], [0, 2])
    assert (samples.samples.tolist(), samples.tokens.tolist()) == ([0], [0, 1])


def test_the_first_position_is_forced_into_a_small_probe():
    x = stream([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert select(x, None, Probe(tokens=0.3, least=1, most=1.0, first=3)).tokens.tolist() == [0, 8, 9]
    assert select(x, None, Probe(tokens=0.3, least=1, most=1.0, first=2)).tokens.tolist() == [7, 8, 9]


def test_padding_comes_last():
    x = stream([[9, 9, 1, 1], [9, 9, 9, 9]])
    valid = torch.tensor([[False, False, True, True], [False, False, False, False]])
    part = select(x, valid, Probe(tokens=0.5, samples=0.5, least=1))
    assert (part.samples.tolist(), part.tokens.tolist()) == ([0], [2, 3])
    # NaN in padding is never looked at.
    assert select(
        x.masked_fill(~valid[..., None], float("nan")), valid, Probe(tokens=0.5, samples=0.5, least=1)
    ).tokens.tolist() == [2, 3]


def test_an_even_probe_does_not_look():
    part = select(torch.full((4, 9, 2), float("nan")), None, Probe(tokens=0.3, samples=0.5, least=1, most=1.0, rank="even"))
    assert (part.samples.tolist(), part.tokens.tolist()) == ([0, 3], [0, 4, 8])


@pytest.mark.parametrize("wrong", [{"tokens": 0.0}, {"samples": 1.5}, {"most": -0.1}, {"least": 0}])
def test_what_is_no_part_is_refused(wrong):
    with pytest.raises(UserError, match="Allowed"):
        Probe(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"probe": None, "history": "none"},
        {"history": "none", "compensate": "none"},  # nothing says which heads leave
        {"metric": "flap"},
        {"history": "none", "compensate": "mean", "probed": ("attention", "mlp")},
        {"fusion": 1.5},
        {"ema": 1.0},
        {"attention": "none", "mlp": False},
        {"round_to": 0},
    ],
)
def test_what_cannot_choose_is_refused(wrong):
    with pytest.raises(UserError):
        ProbePruning(**wrong)
