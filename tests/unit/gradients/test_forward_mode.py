import pytest
import torch

from secateur.gradients import forward_mode
from secateur.gradients.forward_mode import derivative


class Cube(torch.autograd.Function):
    """x^3 with a backward rule and no forward one, as BLOOM's GELU."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@pytest.mark.parametrize("cube", [Cube.apply, lambda x: x**3])
def test_a_derivative_along_a_direction(cube):
    draw = torch.Generator().manual_seed(0)
    x, y, dx, dy = (torch.randn(3, 2, dtype=torch.float64, generator=draw) for _ in range(4))
    found = derivative(lambda x, y: cube(x) * y, (x, y), (dx, dy))
    torch.testing.assert_close(found, 3 * x**2 * y * dx + x**3 * dy)
    assert not found.requires_grad


def test_two_backwards_are_taken_only_where_they_must(monkeypatch):
    monkeypatch.setattr(forward_mode, "_by_two_backwards", lambda *_: pytest.fail("not needed"))
    attend = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(1, 2, 5, 8)
    derivative(lambda q: attend(q, q, q, is_causal=True), (q,), (torch.ones_like(q),))


def test_a_mistake_in_the_function_is_not_hidden():
    with pytest.raises(RuntimeError, match="must match"):
        derivative(lambda x: x + torch.ones(5), (torch.ones(3),), (torch.ones(3),))
