"""On a quadratic loss, averaged over all sign vectors, the sampled gradients are the gradients: enumerated, not sampled.

A central difference of a quadratic is exact for any step. Of a random direction only E z z^T = I is used, which the sign vectors
have as N(0, I) has.
"""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from secateur.gradients.gate_space import gate_gradients
from secateur.gradients.sampling import slopes
from secateur.gradients.weight_space import SampledMatrix
from secateur.statistics.moments import Moments

SAMPLES, ROWS, COLUMNS, EPS, TOKENS = 3, 2, 4, 0.5, 6
F64 = torch.float64


def signs(size: int) -> Tensor:
    """All of them, [direction, size]."""
    return torch.tensor(list(product((-1.0, 1.0), repeat=size)), dtype=F64)


@dataclass(frozen=True)
class Quadratic:
    """L_n(x) = x A_n x / 2 + b_n x, for each sample."""

    a: Tensor
    b: Tensor

    @classmethod
    def drawn(cls, size: int) -> "Quadratic":
        draw = torch.Generator().manual_seed(0)
        a = torch.randn(SAMPLES, size, size, dtype=F64, generator=draw)
        return cls(a + a.mT, torch.randn(SAMPLES, size, dtype=F64, generator=draw))

    def losses(self, x: Tensor) -> Tensor:
        """[sample, direction] at x[direction, size]"""
        return torch.einsum("ki,nij,kj->nk", x, self.a, x) / 2 + self.b @ x.mT

    def gradients(self, x: Tensor) -> Tensor:
        """[sample, size] at x[size]"""
        return self.a @ x + self.b


@pytest.fixture
def sampled() -> tuple[SampledMatrix, Tensor]:
    """A matrix with all sign vectors as queries, and the true gradient of every sample."""
    loss = Quadratic.drawn(ROWS * COLUMNS)
    weight = torch.randn(ROWS, COLUMNS, dtype=F64, generator=torch.Generator().manual_seed(1))
    z = signs(weight.numel())
    rho = slopes(loss.losses(weight.flatten() + EPS * z), loss.losses(weight.flatten() - EPS * z), EPS)

    def direction(query: int, layer: int, module: str, rows: slice, columns: int) -> Tensor:
        return z[query].view(ROWS, columns)[rows]

    g = loss.gradients(weight.flatten()).view(SAMPLES, ROWS, COLUMNS)
    return SampledMatrix(weight=weight, rho=rho, direction=direction), g


def test_the_slope_of_a_quadratic_is_exact():
    loss, x = Quadratic.drawn(5), torch.arange(5, dtype=F64)
    z = signs(5)
    found = slopes(loss.losses(x + EPS * z), loss.losses(x - EPS * z), EPS)
    torch.testing.assert_close(found, loss.gradients(x) @ z.mT, rtol=1e-12, atol=1e-12)
    assert slopes(torch.tensor([3.0]), torch.tensor([1.0]), 0.25).dtype == F64


def test_the_expected_weight_gradient_is_the_gradient(sampled: tuple[SampledMatrix, Tensor]):
    matrix, g = sampled
    torch.testing.assert_close(matrix.total(slice(0, ROWS)), g.sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(matrix.total(slice(1, 2)), g.sum(0)[1:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([*matrix.samples(slice(0, ROWS))]), g, rtol=1e-12, atol=1e-12)
    # One query alone is far off: |rho z|^2, with |z|^2 = `size` for signs, is on average `size` times |g|^2.
    torch.testing.assert_close(matrix.rho.square().mean(1), g.square().sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_the_expected_gates_of_the_columns_are_those_of_the_gradient(sampled: tuple[SampledMatrix, Tensor]):
    matrix, g = sampled
    torch.testing.assert_close(matrix.column_gates(), (g * matrix.weight).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by_column", [False, True])
def test_line_sums_are_those_of_the_gradient(sampled: tuple[SampledMatrix, Tensor], by_column: bool):
    matrix, g = sampled
    along, w = 0 if by_column else 1, matrix.weight
    x = torch.randn(20, COLUMNS, dtype=F64, generator=torch.Generator().manual_seed(2))
    total = g.sum(0)
    found = matrix.gradient(Moments.of(x), by_column=by_column)
    expected = [
        (total * w).sum(along),
        (total * w).abs().sum(along),
        ((total * w).abs() * x.norm(dim=0)).sum(along),
        (total * w * x.mean(0)).abs().sum(along),
    ]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    each = g / (TOKENS - 1)
    fisher = each.square().mean(0)
    expected = [
        (w.square() * fisher).sum(along),
        (each.mean(0) * w - w.square() * fisher / 2).abs().sum(along),
        (w.abs() * each.abs().sum(0)).sum(along),
        (w.abs() * each.square().sum(0).sqrt()).sum(along),
    ]
    for a, b in zip(matrix.fisher(TOKENS, by_column=by_column), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_expected_gate_gradient_is_the_gradient():
    gates = 6
    loss, d, one = Quadratic.drawn(gates), signs(gates), torch.ones(gates, dtype=F64)
    rho = slopes(loss.losses(one + EPS * d), loss.losses(one - EPS * d), EPS)
    found = gate_gradients(rho, lambda slots, layer: d[slots % len(d)].float(), 0, gates)
    torch.testing.assert_close(found, loss.gradients(one), rtol=1e-12, atol=1e-12)


def test_every_slot_has_the_direction_of_its_own_sample_and_round():
    """Two samples, three rounds: a loss that is linear, and directions that differ from slot to slot."""
    d = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).sign()
    rho = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=F64)
    asked = []

    def design(slots: Tensor, layer: int) -> Tensor:
        asked.append(layer)
        return d[slots]

    expected = torch.stack([rho[0] @ d[:3].double(), rho[1] @ d[3:].double()]) / 3
    assert torch.equal(gate_gradients(rho, design, 7, 4), expected)
    assert set(asked) == {7}
