"""Structured OBS against its oracles: the score ladder, one update for any order, redundancy and copies."""

import pytest
import torch

from secateur.allocation.ladder import choose
from secateur.criteria.criterion import unit_scores
from secateur.criteria.elimination import weighted
from secateur.criteria.flap import Flap
from secateur.criteria.obs import Obs
from secateur.criteria.path import greedy_path, rows_of
from secateur.criteria.sensitivity import Sensitivity
from secateur.criteria.wanda_sp import WandaSp
from secateur.errors import UserError
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.statistics.output_gradient import OutputGradientGram
from secateur.surgery.compensate import LeastSquares, relative_error
from tests.contract.groups import CASES, SIZES, make_case
from tests.reference.elimination import greedy
from tests.reference.ridge import ridge_scale

MATRIX = pytest.mark.parametrize(("layout", "axis"), CASES)
RIDGE = 0.02


def by_hand(case):
    """(order, squared output error per token, lam I in it, after each unit has left)."""
    x = case.inputs[case.group.reader.module]
    w, lam = case.group.reader_matrix, RIDGE * ridge_scale(x)
    order, losses = greedy(w, x, torch.eye(len(w), dtype=w.dtype), case.group.unit_of_column, lam, rows_of(case.group))
    return order, torch.tensor(losses, dtype=torch.float64)


@MATRIX
def test_scores_rank_as_the_path_goes_and_integrate_to_its_whole_error(layout, axis):
    case = make_case(layout, axis)
    scores = Obs(ridge=RIDGE).score(case.group, case.seen())
    order, losses = by_hand(case)
    rows = rows_of(case.group)
    if rows == 1:
        assert scores.argsort().tolist() == order
    assert (scores[order].diff() > 0).all()
    running = (scores[order] * case.group.parameters_per_unit).cumsum(0)[rows - 1 :: rows]
    ends = losses[rows - 1 :: rows]
    assert float(running[-1]) == pytest.approx(float(ends[-1]), rel=1e-9)
    assert (running <= ends * (1 + 1e-9)).all()  # a lower envelope


@MATRIX
@pytest.mark.parametrize("standardised", [False, True])
def test_whatever_number_stays_is_the_end_of_the_path(layout, axis, standardised):
    """Also where slopes are equal, as those of an envelope are, and where all scores have been standardised."""
    case = make_case(layout, axis, tokens=9)  # fewer than columns: many costs are alike
    rows = rows_of(case.group)
    gram = case.seen()[case.group.reader.module][Gram]
    order = greedy_path(case.group, gram, RIDGE, weigh_of(case.group)).order.tolist()
    scores = unit_scores(Obs(ridge=RIDGE), case.group, case.seen(), standardised=standardised)
    for count in range(1, SIZES[axis] + 1):
        chosen = choose(scores, axis, SIZES, count)
        stays = {r * SIZES[axis] + i for r, row in enumerate(chosen) for i in row} if rows > 1 else set(chosen)
        assert stays == set(order[len(order) - count * rows :])


def weigh_of(group):
    def weigh(dtype):
        return weighted(group.reader, None, dtype), lambda v: v

    return weigh


@MATRIX
def test_is_sensitivity_without_gradients(layout, axis):
    """F = I and no gates."""
    case = make_case(layout, axis)
    seen = case.seen()
    reader = case.group.reader
    count = seen[reader.module][Gram].count
    seen[reader.module][OutputGradientGram] = OutputGradientGram(count, torch.eye(len(reader.oriented), dtype=torch.float64))
    whole = Sensitivity(ridge=RIDGE, damping=0.0, gates=0.0).score(case.group, seen)
    torch.testing.assert_close(Obs(ridge=RIDGE).score(case.group, seen), whole * 2 * count, rtol=1e-9, atol=0)


@MATRIX
def test_a_plan_of_any_size_loses_what_the_path_says_once_least_squares_has_repaired_it(layout, axis):
    """The error of one update for the whole set against the sum of the costs of one removal at a time."""
    case = make_case(layout, axis, tokens=200)
    seen = case.seen()[case.group.reader.module]
    w, gram = case.group.reader_matrix, seen[Gram]
    scores, rows = Obs(ridge=0.0).score(case.group, case.seen()), rows_of(case.group)
    path = greedy_path(case.group, gram, 0.0, lambda dtype: (weighted(case.group.reader, None, dtype), lambda v: v.mT @ v))
    for count in range(1, SIZES[axis]):
        chosen = choose(scores, axis, SIZES, count)
        flat = [kv * SIZES["group"] + p for kv, row in enumerate(chosen) for p in row] if axis == "group" else chosen
        keep = torch.isin(case.group.unit_of_column, torch.tensor(flat)).nonzero().flatten()
        new, _ = LeastSquares(ridge=0.0).compensate(w, None, keep, seen)
        error = relative_error(w, new, keep, gram) * float(torch.trace(w @ gram.matrix.double() @ w.T)) / gram.count
        assert error == pytest.approx(float(path.cost[: (SIZES[axis] - count) * rows].sum()), rel=1e-7)


def test_the_first_to_leave_costs_no_more_than_bias_or_nothing_would():
    """The score ladder: OBS on the centred matrix <= Var(x_u) |W_u|^2 <= E x_u^2 |W_u|^2, unit by unit."""
    case = make_case("llama", "ffn")
    module, w = case.group.reader.module, case.group.reader_matrix
    x = case.inputs[module]
    centred = Gram.of(x - x.mean(0))
    moments = Moments.of(x)
    bias = Flap().columns(case.group, {module: {Moments: moments}}) * (len(x) - 1) / len(x)
    nothing = moments.second_moment * w.square().sum(0)
    # One unit at a time, each asked alone: the cost of its first step.
    inverse = torch.linalg.inv(centred.matrix.double() / len(x))
    alone = w.square().sum(0) / inverse.diagonal()
    assert (alone <= bias * (1 + 1e-9)).all()
    assert (bias <= nothing * (1 + 1e-9)).all()
    scores = Obs(ridge=0.0).score(case.group, {module: {Gram: centred}})
    assert int(scores.argmin()) == int(alone.argmin())
    assert float(scores.min()) * case.group.parameters_per_unit <= float(alone.min()) * (1 + 1e-9)


def test_a_channel_that_the_others_can_say_is_free_and_nothing_is_lost():
    case = make_case("llama", "ffn")
    module, w = case.group.reader.module, case.group.reader_matrix
    x = case.inputs[module]
    # Channel 4, the loudest: Wanda and FLAP would keep it longest.
    x[:, 4] = 20 * (x[:, 1] - 2 * x[:, 9] + x[:, 13])
    seen = case.seen()
    scores = Obs(ridge=0.0).score(case.group, seen)
    gone = int(scores.argmin())
    assert gone in (1, 4, 9, 13)  # any of them is said by the other three
    assert scores[gone] < 1e-5 * scores.sort().values[1]
    keep = torch.tensor([j for j in range(SIZES["ffn"]) if j != gone])
    new, _ = LeastSquares(ridge=0.0).compensate(w, None, keep, seen[module])
    torch.testing.assert_close(x[:, keep] @ new.double().T, x @ w.T, rtol=1e-6, atol=1e-6)
    for blind in (WandaSp(), Flap()):
        assert int(blind.score(case.group, seen).argmax()) == 4


@pytest.mark.parametrize("axis", ["kv", "group"])
def test_a_head_that_repeats_another_is_free(axis):
    case = make_case("llama", axis)
    x, units = case.inputs["self_attn.o_proj"], case.group.unit_of_column
    last = case.group.num_units - 1
    x[:, units == last] = x[:, units == 0]
    seen = case.seen()
    scores = Obs(ridge=0.0).score(case.group, seen)
    rest = [u for u in range(last) if u]
    if axis == "kv":
        assert int(scores.argmin()) in (0, last)
        assert scores[[0, last]].min() < 1e-5 * scores[rest].min()
    else:  # one of each kv head leaves at once, so a rung has the cost of three
        first = scores.argsort()[: SIZES["kv"]].tolist()
        assert {0, last} & set(first)
    for blind in (WandaSp(), Flap()):
        assert blind.score(case.group, seen).sort().values[0] > 0


def test_scaling_up_rows_against_down_columns_changes_nothing():
    case = make_case("llama", "ffn")
    before = Obs(ridge=0.0).score(case.group, case.seen())
    factor = torch.linspace(0.2, 5, SIZES["ffn"], dtype=torch.float64)
    case.inputs["mlp.down_proj"].mul_(factor)
    case.group.reader.value.div_(factor)
    after = Obs(ridge=0.0).score(case.group, case.seen())
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_ridge_out_of_range_is_refused(value):
    with pytest.raises(UserError, match="obs's ridge is"):
        Obs(ridge=value)
