"""Greedy elimination against regressions from scratch, and what its costs promise."""

import pytest
import torch

from secateur.axes import parse
from secateur.criteria.elimination import Inverse, cut, eliminate, weighted
from secateur.criteria.unit import Matrix
from secateur.errors import UserError
from secateur.statistics.gram import Gram
from tests.reference.elimination import greedy, loss
from tests.reference.ridge import ridge_scale

TOKENS, OUT, LAM = 60, 6, 0.3


def problem(columns: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W, X, F) with correlated inputs and gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    w, x, g = normal(OUT, columns), normal(TOKENS, columns) @ normal(columns, columns), normal(TOKENS, OUT) @ normal(OUT, OUT)
    return w, x, g.T @ g


def path(w, x, f, units, *, lam=LAM, dtype=torch.float64, **options):
    gram = Gram.of(x)
    inverse = Inverse.of(gram, lam / float(gram.matrix.diagonal().mean()))
    return eliminate(weighted(matrix(w), f, dtype), inverse.matrix.to(dtype), units, **options)


def matrix(w):
    return Matrix(name="down.weight", value=w, spec=parse("hidden <- ffn"))


@pytest.mark.parametrize(("number", "size", "rows"), [(9, 1, 1), (5, 3, 1), (6, 2, 3), (8, 1, 2)])
@pytest.mark.parametrize("pending", [1, 4, 64])
def test_equals_regressions_from_scratch_at_every_step(number, size, rows, pending):
    w, x, f = problem(number * size)
    units = torch.arange(number).repeat_interleave(size)
    found = path(w, x, f, units, rows=rows, pending=pending)
    order, losses = greedy(w, x, f, units, LAM, rows)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.cost.cumsum(0), torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=0)


def test_columns_of_a_unit_need_not_be_neighbours():
    w, x, f = problem(12)
    units = torch.arange(4).repeat(3)
    order, losses = greedy(w, x, f, units, LAM)
    found = path(w, x, f, units)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.cost.cumsum(0), torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1, 4])
def test_many_steps_between_updates_change_nothing(size):
    """150 and 600 columns, so that the matrices shrink several times."""
    units = torch.arange(150).repeat_interleave(size)
    w, x, f = problem(150 * size)
    one = path(w, x, f, units, pending=1)
    for pending in (7, 32, 1000):
        many = path(w, x, f, units, pending=pending)
        assert torch.equal(many.order, one.order)
        torch.testing.assert_close(many.cost, one.cost, rtol=1e-8, atol=0)


def test_float32_is_near_float64():
    units = torch.arange(300)
    w, x, f = problem(300)
    lam = 0.01 * ridge_scale(x)
    wide, narrow = (path(w, x, f, units, lam=lam, dtype=t) for t in (torch.float64, torch.float32))
    torch.testing.assert_close(narrow.cost.cumsum(0), wide.cost.cumsum(0), rtol=2e-3, atol=0)
    rank = torch.stack([p.order.argsort().double() for p in (wide, narrow)])
    assert torch.corrcoef(rank)[0, 1] > 0.999


def test_costs_add_up_to_the_loss_of_everything_whatever_the_order():
    w, x, f = problem(10)
    whole = loss(w, x, f, torch.arange(10), LAM)
    for size in (1, 2, 5, 10):
        units = torch.arange(10 // size).repeat_interleave(size)
        assert float(path(w, x, f, units).cost.sum()) == pytest.approx(whole, rel=1e-10)


def test_without_a_metric_it_is_the_squared_error_of_the_outputs():
    w, x, _ = problem(7)
    units, eye = torch.arange(7), torch.eye(OUT, dtype=torch.float64)
    same, plain = path(w, x, eye, units), path(w, x, None, units)
    assert torch.equal(same.order, plain.order)
    assert float(plain.cost.sum()) * TOKENS == pytest.approx(
        float((x @ w.T).square().sum() + LAM * w.square().sum()), rel=1e-10
    )


def test_a_copy_of_a_channel_is_free_to_remove():
    w, x, f = problem(8)
    x[:, 5] = x[:, 2]
    found = path(w, x, f, torch.arange(8), lam=0.0)
    assert found.order[0] in (2, 5)
    assert found.cost[0] < 1e-5 * found.cost[1]


def test_inputs_that_are_always_zero_are_apart_from_all_others():
    _, x, _ = problem(8)
    x[:, [1, 6]] = 0
    alive = [0, 2, 3, 4, 5, 7]
    inverse, other = (Inverse.of(Gram.of(y), 0.0).matrix for y in (x, x[:, alive]))
    torch.testing.assert_close(inverse[alive][:, alive], other, rtol=1e-9, atol=0)
    assert Inverse.of(Gram.of(x), 0.0).dead.tolist() == [1, 6]
    assert not inverse[1, alive].any()


def test_the_inverse_is_that_of_the_mean_with_the_ridge():
    _, x, _ = problem(8)
    second = x.T @ x / TOKENS
    expected = (second + 0.1 * second.diagonal().mean() * torch.eye(8, dtype=torch.float64)).inverse()
    gram = Gram.of(x)
    before = gram.matrix.clone()
    torch.testing.assert_close(Inverse.of(gram, 0.1).matrix, expected)
    assert torch.equal(gram.matrix, before)


def test_a_matrix_that_no_ridge_mends_is_refused():
    with pytest.raises(UserError, match="not positive definite"):
        Inverse.of(Gram(4, torch.tensor([[1.0, 3.0], [3.0, 1.0]])), 1e-9)


@pytest.mark.parametrize("keep", [[0], [3, 4], [0, 2, 5], [0, 1, 2, 3, 4, 5], [5]])
def test_cutting_moves_rows_and_columns_within_the_same_memory(keep, monkeypatch):
    monkeypatch.setattr("secateur.criteria.elimination.ROWS", 2)
    x = torch.arange(36.0).view(6, 6)
    expected, where = x[keep][:, keep].clone(), x.data_ptr()
    found = cut(x, torch.tensor(keep))
    assert torch.equal(found, expected)
    assert found.data_ptr() == where
