import pytest
import torch

from secateur.gradients.lifting import lifted_fisher, lifted_gradient, no_fisher, no_gradient
from secateur.statistics.gate_gradient import GateGradient
from secateur.statistics.moments import Moments

UNIT = torch.tensor([2, 2, 0, 0, 1, 1])  # two columns for each gate
OUT, SAMPLES, TOKENS = 5, 4, 7
F64 = torch.float64


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A reader's matrix, every sample's true gradient, and the true gates of its units."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, len(UNIT), dtype=F64, generator=draw)
    g = torch.randn(SAMPLES, OUT, len(UNIT), dtype=F64, generator=draw)
    t = torch.zeros(SAMPLES, 3, dtype=F64).index_add_(1, UNIT, (g * weight).sum(1))
    return weight, g, t


def projected(weight: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Every sample's gradient on the span of the gates' directions in the space of the matrix, by least squares."""
    basis = torch.stack([(weight * (unit == UNIT)).flatten() for unit in range(3)], dim=1)
    solved = torch.linalg.lstsq(basis, g.flatten(1).mT).solution
    return (basis @ solved).mT.view(g.shape)


def test_what_is_lifted_is_the_orthogonal_projection_of_the_gradient():
    weight, g, t = drawn()
    x = torch.randn(9, len(UNIT), dtype=F64, generator=torch.Generator().manual_seed(1))
    each = projected(weight, g)
    total = each.sum(0)
    found = lifted_gradient(weight, UNIT, GateGradient.of(t), Moments.of(x))
    torch.testing.assert_close(found.signed, (total * weight).sum(0))
    torch.testing.assert_close(found.absolute, (total * weight).abs().sum(0))
    torch.testing.assert_close(found.product, ((total * weight).abs() * x.norm(dim=0)).sum(0))
    torch.testing.assert_close(found.average, (total * weight * x.mean(0)).abs().sum(0))
    units = torch.zeros(3, dtype=F64).index_add_(0, UNIT, found.signed)
    torch.testing.assert_close(units, t.sum(0))  # the gates of what was lifted are the gates it was lifted from
    each = each / (TOKENS - 1)
    fisher = each.square().mean(0)
    got = lifted_fisher(weight, UNIT, GateGradient.of(t), TOKENS)
    torch.testing.assert_close(got.second, (weight.square() * fisher).sum(0))
    torch.testing.assert_close(got.mixed, (each.mean(0) * weight - weight.square() * fisher / 2).abs().sum(0))
    torch.testing.assert_close(got.l1, (weight.abs() * each.abs().sum(0)).sum(0))
    torch.testing.assert_close(got.l2, (weight.abs() * each.square().sum(0).sqrt()).sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unit_without_weights_has_no_gradient(dtype: torch.dtype):
    weight, _, t = drawn()
    weight[:, UNIT == 1] = 0
    weight = weight.to(dtype)
    x = torch.ones(2, len(UNIT))
    for found in (
        lifted_gradient(weight, UNIT, GateGradient.of(t), Moments.of(x)),
        lifted_fisher(weight, UNIT, GateGradient.of(t), TOKENS),
    ):
        assert found.finite()
        assert all(bool((column[UNIT == 1] == 0).all()) and bool((column[UNIT == 0] != 0).all()) for column in found)


def test_nothing_is_said_of_other_matrices():
    for found in (no_gradient(4), no_fisher(4)):
        assert all(x.tolist() == [0, 0, 0, 0] for x in found)
