"""The ridge regression on sums, against an augmented one on the tokens themselves."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.surgery.regression import RIDGES, USUAL, Fitted, Regression, lowest
from tests.reference.ridge import held_out_errors, ridge, ridge_scale

CPU = torch.device("cpu")
F64 = torch.float64


def draw(tokens: int, columns: int, outs: int, *, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x of unequal channels with means of their own, and an r that x says in part."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    x = normal(tokens, columns) * normal(columns).exp() + normal(columns)
    x = x + 0.3 * x.roll(1, 1)  # channels that know of each other
    return x, x @ normal(columns, outs) + 3 * normal(outs) + noise * columns**0.5 * normal(tokens, outs)


def every_fourth(tokens: int) -> Tensor:
    return torch.arange(tokens) % 4 == 3


def fitted(
    x: Tensor,
    r: Tensor,
    held: Tensor,
    *,
    intercept: bool,
    parts: Sequence[int] = (),
    sizes: Sequence[int] = (),
    lam: float | None = None,
) -> list[Fitted]:
    """`sizes`: tokens of the micro-batches; all at once by default."""
    sums = Regression(columns=x.shape[1], parts=parts or [r.shape[1]], intercept=intercept, device=CPU)
    splits = list(sizes) or [len(x)]
    for some in zip(x.split(splits), r.split(splits), held.split(splits), strict=True):
        sums.update(*some)
    return sums.solve(lam)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.dtype == F64
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("lam", [0.0, 1e-5, 0.01, 3.0])
@pytest.mark.parametrize(("tokens", "columns", "outs"), [(90, 7, 3), (40, 1, 1), (1300, 5, 520), (700, 515, 4)])
def test_a_given_ridge_is_the_ridge_of_all_tokens(tokens: int, columns: int, outs: int, lam: float, intercept: bool):
    x, r = draw(tokens, columns, outs)
    (found,) = fitted(x, r, every_fourth(tokens), intercept=intercept, lam=lam)
    change, shift = ridge(x, r, lam, intercept=intercept)
    close(found.change, change, 1e-8)
    if intercept:
        close(found.intercept, shift, 1e-8)
    else:
        assert not found.intercept.any()
    assert found.ridge == lam and math.isnan(found.error)


@pytest.mark.parametrize("intercept", [False, True])
def test_an_infinite_ridge_changes_nothing_but_the_mean(intercept: bool):
    x, r = draw(60, 4, 3)
    (found,) = fitted(x, r, every_fourth(60), intercept=intercept, lam=math.inf)
    assert not found.change.any()
    torch.testing.assert_close(found.intercept, r.mean(0) * intercept, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 96, [95, 1], [40, 3, 53], [32, 32, 32]])
def test_how_tokens_come_in_micro_batches_does_not_matter(sizes: list[int], intercept: bool):
    x, r = draw(96, 6, 5)
    held = every_fourth(96)
    (whole,) = fitted(x, r, held, intercept=intercept)
    (found,) = fitted(x, r, held, intercept=intercept, sizes=sizes)
    close(found.change, whole.change, 1e-10)
    torch.testing.assert_close(found.intercept, whole.intercept, rtol=1e-10, atol=1e-10)
    assert found.ridge == whole.ridge and found.error == pytest.approx(whole.error, rel=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
def test_float32_and_bfloat16_tokens_are_summed_in_float64(intercept: bool):
    """Even where 20,000 tokens with a mean of their own come one block at a time."""
    x, r = (t.float() for t in draw(20_000, 6, 4))
    held = every_fourth(20_000)
    change, shift = ridge(x, r, 1e-3, intercept=intercept)
    (found,) = fitted(x, r, held, intercept=intercept, sizes=[500] * 40, lam=1e-3)
    close(found.change, change, 1e-5)
    if intercept:
        close(found.intercept, shift, 1e-5)
    x, r = x.bfloat16(), r.bfloat16()
    change, _ = ridge(x, r, 1e-3, intercept=intercept)
    (found,) = fitted(x, r, held, intercept=intercept, sizes=[500] * 40, lam=1e-3)
    close(found.change, change, 1e-5)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("tokens", "noise"), [(80, 0.1), (80, 0.5), (80, 2.0), (80, 8.0), (500, 0.5), (36, 1.0)])
def test_the_ridge_is_the_one_that_errs_least_on_held_out_tokens(tokens: int, noise: float, intercept: bool):
    searched = 0
    for seed in range(5):
        x, r = draw(tokens, 20, 3, noise=noise, seed=seed)
        held = every_fourth(tokens)
        (found,) = fitted(x, r, held, intercept=intercept)
        errors = held_out_errors(x, r, held, RIDGES, intercept=intercept)
        assert found.error == pytest.approx(errors[RIDGES.index(found.ridge)], rel=1e-8)
        assert found.error <= 1
        best = min(range(len(RIDGES)), key=errors.__getitem__)
        falls = [b < a for a, b in pairwise(errors)]
        if falls != sorted(falls, reverse=True):
            continue  # more than one minimum: any of them is found
        searched += 1
        assert found.ridge == RIDGES[best]
        change, shift = (
            ridge(x, r, found.ridge, intercept=intercept) if best < len(RIDGES) - 1 else (0 * found.change, r.mean(0))
        )
        torch.testing.assert_close(found.change, change, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.intercept, shift * intercept, rtol=1e-7, atol=1e-7)
    assert searched >= 3


@pytest.mark.parametrize("intercept", [False, True])
def test_parts_are_regressions_of_their_own_over_one_input(intercept: bool):
    x, clear = draw(80, 12, 4, noise=0.05)
    held, generator = every_fourth(80), torch.Generator().manual_seed(2)
    noise = torch.randn(80, 3, dtype=F64, generator=generator)
    dim = clear[:, :2] + 8 * torch.randn(80, 2, dtype=F64, generator=generator)
    together = fitted(x, torch.cat([clear, noise, dim], 1), held, intercept=intercept, parts=[4, 3, 2])
    alone = [fitted(x, r, held, intercept=intercept)[0] for r in (clear, noise, dim)]
    assert len({one.ridge for one in alone}) == 3, "drawn so that each part wants another ridge"
    for found, expected in zip(together, alone, strict=True):
        assert found.ridge == expected.ridge and found.error == pytest.approx(expected.error, rel=1e-9)
        torch.testing.assert_close(found.change, expected.change, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.intercept, expected.intercept, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("tokens", [24, 80, 400])
def test_noise_is_left_alone(tokens: int, intercept: bool):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x, r = (torch.randn(tokens, n, dtype=F64, generator=generator) for n in (30, 5))
        (found,) = fitted(x, r, every_fourth(tokens), intercept=intercept)
        assert found.error <= 1
        assert found.ridge >= 0.3, "next to nothing is learnt from it"


def test_it_never_settles_for_more_than_doing_nothing():
    """Errors with a second minimum at the usual ridge, above 1."""
    errors = dict.fromkeys(RIDGES, 1.6) | {USUAL: 1.5, math.inf: 1.0}
    assert lowest(errors.__getitem__) == (math.inf, 1.0)


def test_the_search_asks_no_more_than_it_needs():
    asked: list[float] = []

    def error(lam: float) -> float:
        asked.append(lam)
        return abs(RIDGES.index(lam) - RIDGES.index(1e-3)) / 100

    assert lowest(error) == (1e-3, 0.0)
    assert set(asked) <= {1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, math.inf}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_mean_far_from_zero_does_not_drown_what_varies(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, dtype=F64, generator=generator)
    r = x @ torch.randn(5, 3, dtype=F64, generator=generator)
    x, r = (x + 1e4).to(dtype), (r - 1e4).to(dtype)  # float32 keeps three decimals
    change, shift = ridge(x.double() - 1e4, r, 1e-4, intercept=True)
    (found,) = fitted(x, r, every_fourth(4000), intercept=True, sizes=[100] * 40, lam=1e-4)
    close(found.change, change, 1e-4 if dtype == torch.float32 else 1e-8)
    said = x.double() @ found.change.T + found.intercept
    assert float((said - r.double()).square().mean()) < (1e-5 if dtype == torch.float32 else 1e-6)
    assert float((found.intercept - (shift - 1e4 * change.sum(1))).abs().max()) < (1 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("intercept", [False, True])
def test_dead_inputs_change_nothing(intercept: bool):
    x, r = draw(80, 6, 3)
    x[:, 2] = 0
    x[:, 4] = 7.0 if intercept else 0  # a constant is dead where there is an intercept
    live = [0, 1, 3, 5]
    for lam in (None, 0.0, 0.01):
        (found,) = fitted(x, r, every_fourth(80), intercept=intercept, lam=lam)
        assert found.change.isfinite().all() and found.change[:, [2, 4]].abs().max() < 1e-12
        # The ridge is a fraction of the mean over all columns, dead ones too.
        centred = x - x.mean(0) if intercept else x
        share = ridge_scale(centred) / ridge_scale(centred[:, live])
        change, _ = ridge(x[:, live], r, found.ridge * share, intercept=intercept)
        close(found.change[:, live], change, 1e-8)


@pytest.mark.parametrize("intercept", [False, True])
def test_nothing_but_dead_inputs(intercept: bool):
    _, r = draw(40, 3, 2)
    for lam in (None, 0.0, 0.01):
        (found,) = fitted(torch.zeros(40, 3, dtype=F64), r, every_fourth(40), intercept=intercept, lam=lam)
        assert not found.change.any()
        torch.testing.assert_close(found.intercept, r.mean(0) * intercept)


def test_inputs_said_twice_without_a_ridge_are_solved_all_the_same():
    """G is singular: some ridge is taken, and what is said is what least squares says."""
    x, r = draw(90, 4, 3)
    x = torch.cat([x, x[:, :2]], 1)
    (found,) = fitted(x, r, every_fourth(90), intercept=False, lam=0.0)
    best = r - x @ torch.linalg.lstsq(x, r, driver="gelsd").solution
    assert float((r - x @ found.change.T).norm()) <= (1 + 1e-6) * float(best.norm())
    assert found.change.abs().max() < 1e3


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("token", [0, 3])  # one that is fitted, one that is held out
@pytest.mark.parametrize("lam", [None, 0.01])
def test_inputs_that_are_not_finite_are_refused(lam: float | None, token: int, bad: float, intercept: bool):
    x, r = draw(40, 4, 3)
    x[token, 1] = bad
    with pytest.raises(UserError, match="NaN or infinity. Compute in bf16 or fp32"):
        fitted(x, r, every_fourth(40), intercept=intercept, lam=lam)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("all_held", "dtype", "tolerance"), [(False, F64, 1e-9), (True, torch.float32, 1e-4)])
def test_with_nothing_to_choose_by_the_ridge_is_the_usual_one(
    all_held: bool, dtype: torch.dtype, tolerance: float, intercept: bool
):
    x, r = (t.to(dtype) for t in draw(50, 5, 3))
    (found,) = fitted(x, r, torch.full((50,), all_held), intercept=intercept)
    change, shift = ridge(x, r, USUAL, intercept=intercept)
    close(found.change, change, tolerance)
    torch.testing.assert_close(found.intercept, shift, rtol=tolerance, atol=tolerance)
    assert found.ridge == USUAL and math.isnan(found.error)
