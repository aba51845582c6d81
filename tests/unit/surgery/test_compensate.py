import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UserError
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.surgery import normal_equations
from secateur.surgery.compensate import (
    BiasCompensation,
    Compensation,
    LeastSquares,
    NoCompensation,
    relative_error,
)
from tests.reference.least_squares import regression, regression_with_intercept
from tests.reference.ridge import ridge_scale
from tests.reference.scores import output_error

TOKENS, COLUMNS, OUT = 60, 12, 7


def problem(seed=0, tokens=TOKENS, columns=COLUMNS, out=OUT):
    """(weight, bias, inputs): inputs correlated, far from centred, of different scales; all float64."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = noise(tokens, columns) @ noise(columns, columns) * torch.linspace(0.5, 2, columns) + 3 * noise(columns)
    return noise(out, columns), noise(out), x


def seen(x):
    return {Moments: Moments.of(x), Gram: Gram.of(x)}


KEPT = st.sets(st.integers(0, COLUMNS - 1), min_size=1, max_size=COLUMNS - 1).map(sorted)


@given(keep=KEPT, ridge=st.floats(1e-6, 10), seed=st.integers(0, 99))
def test_least_squares_is_the_ridge_regression_towards_the_original(keep, ridge, seed):
    w, _, x = problem(seed)
    index = torch.tensor(keep)
    found, bias = LeastSquares(ridge=ridge).compensate(w, None, index, seen(x))
    assert bias is None
    lam = ridge * ridge_scale(x[:, keep])
    torch.testing.assert_close(found, regression(w, x, keep, lam), rtol=1e-7, atol=1e-8)


@given(keep=KEPT, ridge=st.floats(1e-6, 10), seed=st.integers(0, 99))
def test_with_a_bias_it_is_the_regression_with_intercept(keep, ridge, seed):
    w, b, x = problem(seed)
    found, bias = LeastSquares(ridge=ridge).compensate(w, b, torch.tensor(keep), seen(x))
    lam = ridge * ridge_scale((x - x.mean(0))[:, keep])
    expected, shift = regression_with_intercept(w, x, keep, lam)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(bias, b + shift, rtol=1e-7, atol=1e-7)


@given(keep=KEPT, seed=st.integers(0, 99))
def test_the_ladder_of_errors(keep, seed):
    """Least squares with intercept < bias < none, in the squared output error, for inputs that are correlated and off centre."""
    w, b, x = problem(seed)
    index = torch.tensor(keep)
    errors = []
    for compensation in (LeastSquares(ridge=0.0), BiasCompensation(), NoCompensation()):
        kept, bias = compensation.compensate(w, b, index, seen(x))
        errors.append(output_error(w, x, kept, keep, bias - b))
    assert errors[0] < errors[1] < errors[2]


def test_the_errors_of_one_removed_column_are_the_formulas_of_the_ladder():
    w, b, x = problem()
    centred = x - x.mean(0)
    for u in range(COLUMNS):
        keep = [j for j in range(COLUMNS) if j != u]
        size = float(w[:, u].square().sum())
        for compensation, formula in (
            (NoCompensation(), x[:, u].square().sum() * size),
            (BiasCompensation(), x[:, u].var() * (TOKENS - 1) * size),
            (LeastSquares(ridge=0.0), size / torch.linalg.inv(centred.T @ centred)[u, u]),
        ):
            kept, bias = compensation.compensate(w, b, torch.tensor(keep), seen(x))
            assert output_error(w, x, kept, keep, bias - b) == pytest.approx(float(formula), rel=1e-8)


def test_an_infinite_ridge_changes_nothing_and_no_removal_changes_nothing():
    w, b, x = problem()
    keep = torch.tensor([0, 3, 4, 9])
    found, bias = LeastSquares(ridge=1e15).compensate(w, b, keep, seen(x))
    torch.testing.assert_close(found, w[:, keep], rtol=1e-12, atol=1e-12)
    expected = BiasCompensation().compensate(w, b, keep, seen(x))[1]
    torch.testing.assert_close(bias, expected, rtol=1e-9, atol=1e-9)
    everything = torch.arange(COLUMNS)
    for compensation in (NoCompensation(), BiasCompensation(), LeastSquares()):
        kept, bias = compensation.compensate(w, b, everything, seen(x))
        assert torch.equal(kept, w)
        assert torch.equal(bias, b)


def test_what_kept_inputs_can_say_exactly_is_lost_in_nothing():
    """A removed input that is a combination of kept ones, among them a duplicate, leaves the output as it was."""
    w, _, x = problem()
    x[:, 5] = x[:, 4]
    x[:, 7] = 2 * x[:, 0] - x[:, 1] + 0.5 * x[:, 4]
    keep = [j for j in range(COLUMNS) if j not in (5, 7)]
    index = torch.tensor(keep)
    found, _ = LeastSquares(ridge=0.0).compensate(w, None, index, seen(x))
    torch.testing.assert_close(x[:, keep] @ found.T, x @ w.T, rtol=1e-6, atol=1e-6)
    assert relative_error(w, found, index, Gram.of(x)) < 1e-12
    assert relative_error(w, w[:, keep], index, Gram.of(x)) > 1e-2


def test_relative_error_is_that_of_the_outputs(monkeypatch):
    monkeypatch.setattr("secateur.surgery.compensate.ROWS", 5)
    w, _, x = problem()
    keep = torch.tensor([1, 2, 8])
    kept = torch.randn(OUT, 3, dtype=torch.float64)
    expected = output_error(w, x, kept, keep.tolist()) / float((x @ w.T).square().sum())
    assert relative_error(w, kept, keep, Gram.of(x)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_dead_inputs_keep_their_weights_and_disturb_nobody(ridge, has_bias):
    w, b, x = problem()
    x[:, [2, 6, 7]] = 0
    keep, alive = torch.tensor([0, 1, 2, 4, 6, 9]), torch.tensor([0, 1, 4, 9])
    mean_of_all = LeastSquares(ridge=ridge * len(alive) / len(keep) if ridge else 0.0)
    found, bias = LeastSquares(ridge=ridge).compensate(w, b if has_bias else None, keep, seen(x))
    assert torch.equal(found[:, [2, 4]], w[:, [2, 6]])
    wanted, wanted_bias = mean_of_all.compensate(w, b if has_bias else None, alive, seen(x))
    torch.testing.assert_close(found[:, [0, 1, 3, 5]], wanted, rtol=1e-9, atol=1e-9)
    if has_bias:
        torch.testing.assert_close(bias, wanted_bias, rtol=1e-9, atol=1e-9)


def test_a_constant_input_is_dead_once_it_is_centred():
    """In a float32 Gram matrix its variance is a difference of two roundings, and may be negative."""
    w, b, x = problem()
    x[:, 3] = 17.3
    x[:, 8] = -40.1
    known = {Moments: Moments.of(x.float()), Gram: Gram.of(x.float())}
    keep = torch.tensor([0, 3, 5, 8])
    found, bias = LeastSquares(ridge=0.0).compensate(w, b, keep, known)
    assert torch.equal(found[:, [1, 3]], w[:, [3, 8]])
    said = x[:, keep] @ found.T + bias
    torch.testing.assert_close(said.mean(0), (x @ w.T + b).mean(0), rtol=1e-4, atol=1e-4)


def test_nothing_alive_changes_nothing():
    w, _, x = problem()
    found, _ = LeastSquares().compensate(w, None, torch.tensor([1, 2]), seen(torch.zeros_like(x)))
    assert torch.equal(found, w[:, [1, 2]])


def test_a_matrix_that_rounding_made_indefinite_gets_ten_times_the_ridge_until_it_is_not():
    w, _, x = problem()
    gram, keep = Gram.of(x), torch.arange(COLUMNS - 1)
    values, vectors = torch.linalg.eigh(gram.matrix[:-1, :-1])
    values[0] = -3e-6 * values.mean()
    gram.matrix[:-1, :-1] = vectors @ torch.diag(values) @ vectors.T
    bent = {Moments: Moments.of(x), Gram: gram}
    found, _ = LeastSquares(ridge=1e-9).compensate(w, None, keep, bent)
    assert torch.equal(found, LeastSquares(ridge=1e-5).compensate(w, None, keep, bent)[0])


def test_a_matrix_that_is_no_gram_matrix_is_refused():
    w, _, x = problem()
    gram = Gram.of(x)
    keep = torch.arange(COLUMNS - 1)
    upside_down = gram.matrix.clone()
    upside_down[0, 1] = upside_down[1, 0] = -100 * upside_down[0, 0].abs() - 100 * upside_down[1, 1].abs()
    with pytest.raises(UserError, match="not positive definite.*--compensate bias"):
        LeastSquares(ridge=1e-9).compensate(w, None, keep, {Moments: Moments.of(x), Gram: Gram(gram.count, upside_down)})
    broken = gram.matrix.clone()
    broken[4, 4] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        LeastSquares().compensate(w, None, keep, {Moments: Moments.of(x), Gram: Gram(gram.count, broken)})


def test_blocks_do_not_change_the_result(monkeypatch):
    w, b, x = problem()
    keep = torch.tensor([0, 2, 3, 7, 8, 10, 11])
    for bias in (None, b):
        expected = LeastSquares().compensate(w, bias, keep, seen(x))
        with monkeypatch.context() as small:
            small.setattr(normal_equations, "ROWS", 3)
            small.setattr(normal_equations, "OUTPUTS", 4)
            small.setattr("secateur.surgery.compensate.ROWS", 3)
            found = LeastSquares().compensate(w, bias, keep, seen(x))
        for a, e in zip(found, expected, strict=True):
            assert (a is None) == (e is None)
            if a is not None:
                torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_what_is_given_stays_as_it_was(dtype):
    w, b, x = problem()
    w, b, keep = w.to(dtype), b.to(dtype), torch.tensor([0, 2, 5])
    known = seen(x.float())
    before = [w.clone(), b.clone(), known[Gram].matrix.clone(), known[Moments].mean.clone()]
    for compensation in (NoCompensation(), BiasCompensation(), LeastSquares()):
        kept, _ = compensation.compensate(w, b, keep, known)
        assert kept.shape == (OUT, 3)
        wide = torch.promote_types(dtype, torch.float32)
        assert kept.dtype == (wide if isinstance(compensation, LeastSquares) else dtype)
    for old, new in zip(before, [w, b, known[Gram].matrix, known[Moments].mean], strict=True):
        assert torch.equal(old, new)
    exact, _ = LeastSquares().compensate(w.double(), None, keep, known)
    found, _ = LeastSquares().compensate(w, None, keep, known)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_transposed_weight_is_as_good():
    w, _, x = problem()
    keep = torch.tensor([0, 2, 5])
    stored = w.T.contiguous()
    for compensation in (NoCompensation(), BiasCompensation(), LeastSquares()):
        torch.testing.assert_close(
            compensation.compensate(stored.T, None, keep, seen(x)), compensation.compensate(w, None, keep, seen(x))
        )


def test_a_bias_is_made_where_there_was_none():
    w, _, x = problem()
    keep = torch.tensor([0, 2, 5])
    kept, bias = BiasCompensation().compensate(w, None, keep, {Moments: Moments.of(x)})
    drop = [1, 3, 4, *range(6, COLUMNS)]
    torch.testing.assert_close(bias, w[:, drop] @ x.mean(0)[drop])
    assert torch.equal(kept, w[:, keep])


def test_statistics_of_different_tokens_are_not_mixed():
    w, b, x = problem()
    with pytest.raises(AssertionError, match="moments of 30 tokens, Gram matrix of 60"):
        LeastSquares().compensate(w, b, torch.tensor([0]), {Moments: Moments.of(x[:30]), Gram: Gram.of(x)})


def test_options():
    assert all(isinstance(c, Compensation) for c in (NoCompensation(), BiasCompensation(), LeastSquares()))
    for ridge in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="Allowed: 0 and above"):
            LeastSquares(ridge=ridge)


def test_a_few_massive_channels_do_not_silence_least_squares_for_the_others():
    """Two inputs a thousand times larger, their columns as much smaller: the same function, and all but the same error."""
    weight, _, x = problem(columns=24, tokens=400)
    scale = torch.ones(24, dtype=x.dtype)
    scale[[3, 7]] = 1000.0
    keep = torch.tensor([i for i in range(24) if i % 3])
    errors = []
    for s in (torch.ones_like(scale), scale):
        kept, _ = LeastSquares(ridge=0.01).compensate(weight / s, None, keep, seen(x * s))
        errors.append(float((x @ weight.T - (x * s)[:, keep] @ kept.T).square().sum()))
    plain = float((x @ weight.T - x[:, keep] @ weight[:, keep].T).square().sum())
    assert errors[0] < 0.5 * plain
    assert errors[1] < 1.5 * errors[0]
