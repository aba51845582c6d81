"""What a prompt says of each channel, against the formula written out."""

import pytest
import torch

from secateur import Probe, ProbePruning, UserError
from secateur.runtime.griffin import statistic
from secateur.runtime.scoring import Reading, importance, scores
from tests.reference import griffin as naive


def activations(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)
    return z * torch.rand(3, 7, 1, generator=generator, dtype=torch.float64).exp().pow(9)  # tokens of very different norms


def expected(z: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    return torch.tensor(naive.statistic(z, valid), dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_naive_loop(batch):
    z = activations()[:batch]
    torch.testing.assert_close(statistic(z, None), expected(z), rtol=1e-12, atol=0.0)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 1e-5)):  # summed in float32, of what was rounded
        low = z.to(dtype)
        torch.testing.assert_close(statistic(low, None).double(), expected(low), rtol=rtol, atol=0.0)


def test_padding_and_a_sequence_of_nothing_else_add_nothing():
    z = activations()
    valid = torch.tensor([[True] * 7, [False] * 3 + [True] * 4, [False] * 7])
    z[~valid] = float("nan")
    torch.testing.assert_close(statistic(z, valid), expected(z, valid), rtol=1e-12, atol=0.0)


def test_a_token_without_activation_adds_nothing_and_nan_is_seen():
    z = activations()
    z[0, 2] = 0.0
    torch.testing.assert_close(statistic(z, None), expected(z), rtol=1e-12, atol=0.0)
    z[0, 2, 4] = float("nan")
    assert not torch.isfinite(statistic(z, None)).all()


def test_every_token_counts_alike_and_every_prompt_whatever_its_length():
    z = activations()[:2]
    torch.testing.assert_close(statistic(z * torch.rand(2, 7, 1, dtype=torch.float64), None), statistic(z, None))
    long = torch.cat([z[:1], z[:1]], dim=1)
    torch.testing.assert_close(statistic(long, None), statistic(z[:1], None))


def test_it_looks_at_no_weights():
    weight, z = torch.randn(11, 5, dtype=torch.float64), activations()
    how = ProbePruning.griffin()
    c = importance(z, torch.arange(7), None, how, None)
    torch.testing.assert_close(scores(c, Reading.of(weight, how.metric, 11), how.metric), statistic(z, None))


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "griffin"},
        {"metric": "griffin", "history": "none", "compensate": "none", "probed": ("attention", "mlp")},
        {"metric": "griffin", "attention": "none", "probe": None},
        {"prompt": "dense"},
        {"prompt": "dense", "attention": "none", "ema": 0.9},
    ],
)
def test_what_does_not_go_together_is_refused(changes):
    with pytest.raises(UserError, match="Use "):
        ProbePruning(**changes)
    ProbePruning(prompt="dense", attention="none", probe=Probe(least=4))
