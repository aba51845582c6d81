"""The scores made of a greedy path: its order, its envelope, its units."""

import pytest
import torch

from secateur import axes
from secateur.allocation.global_ import Global
from secateur.allocation.ladder import build_ladder, choose
from secateur.criteria.criterion import unit_scores
from secateur.criteria.envelope import ascending, envelope
from secateur.criteria.sensitivity import Sensitivity
from secateur.errors import UserError
from secateur.plan import unit_cost
from secateur.statistics.gram import Gram
from secateur.statistics.output_gradient import OutputGradientGram
from tests.contract.groups import CASES, LAYOUTS, SIZES, make_case
from tests.reference.elimination import greedy
from tests.reference.ridge import ridge_scale

MATRIX = pytest.mark.parametrize(("layout", "axis"), CASES)
RIDGE, DAMPING = 0.02, 0.1


def gate_ratios(case, f):
    """What a unit's gate does to the loss of whole samples over what F and H predict; one number for all channels."""
    reader, units = case.group.reader, case.group.unit_of_column
    x, g, w = case.inputs[reader.module], case.gradients[reader.module], case.group.reader_matrix
    found, predicted = [], []
    for u in range(case.group.num_units):
        moved = x[:, units == u] @ w[:, units == u].T  # what the unit adds to the output
        found.append(float((g * moved).sum(1).view(-1, case.sample_length).sum(1).square().sum()))
        predicted.append(float(torch.trace(f @ moved.T @ moved)) / len(x))
    if case.group.axis == "ffn":
        found, predicted = [sum(found)] * len(found), [sum(predicted)] * len(predicted)
    return torch.tensor(found, dtype=torch.float64) / torch.tensor(predicted, dtype=torch.float64)


def by_hand(case, gates=0.5):
    """(order, losses in nats per token, rows) with the same ridge and damping."""
    reader = case.group.reader
    x, g = case.inputs[reader.module], case.gradients[reader.module]
    f = g.T @ g
    f += DAMPING * f.diagonal().mean() * torch.eye(len(f), dtype=f.dtype)
    lam = RIDGE * ridge_scale(x)
    rows = SIZES["kv"] if case.group.axis == "group" else 1
    scale = gate_ratios(case, f).pow(gates / 2)[case.group.unit_of_column]
    order, losses = greedy(case.group.reader_matrix * scale, x, f, case.group.unit_of_column, lam, rows)
    return order, torch.tensor(losses, dtype=torch.float64) / (2 * len(x)), rows


@MATRIX
@pytest.mark.parametrize("gates", [0.0, 0.5, 1.0])
def test_scores_rank_as_the_path_goes_and_integrate_to_its_whole_loss(layout, axis, gates):
    case = make_case(layout, axis)
    scores = Sensitivity(ridge=RIDGE, damping=DAMPING, gates=gates).score(case.group, case.seen())
    order, losses, rows = by_hand(case, gates)
    if rows == 1:
        assert scores.argsort().tolist() == order
    assert (scores[order].diff() > 0).all()
    cost = unit_cost([axes.parse(s) for s in LAYOUTS[layout][1].values()], SIZES, axis)
    assert float(scores.sum() * cost) == pytest.approx(float(losses[-1]), rel=1e-9)
    running = (scores[order] * cost).cumsum(0)[rows - 1 :: rows]
    ends = losses[rows - 1 :: rows]
    assert (running <= ends * (1 + 1e-9)).all()  # a lower envelope


@MATRIX
def test_a_plan_of_any_size_keeps_the_end_of_the_path(layout, axis):
    case = make_case(layout, axis)
    scores = Sensitivity(ridge=RIDGE, damping=DAMPING).score(case.group, case.seen())
    order, _, rows = by_hand(case)
    for count in range(1, SIZES[axis]):
        gone = set(order[: (SIZES[axis] - count) * rows])
        kept = choose(scores, axis, SIZES, count)
        flat = [kv * SIZES["group"] + p for kv, row in enumerate(kept) for p in row] if axis == "group" else kept
        assert set(flat) == set(range(len(order))) - gone


def test_global_allocation_minimises_the_sum_of_the_predicted_losses():
    """Over every pair of counts that leaves as much, among those that the envelopes have a corner at."""
    paths = {}
    for axis in ("ffn", "kv"):
        case = make_case("llama", axis)
        criterion = Sensitivity()
        scores = unit_scores(criterion, case.group, case.seen(), standardised=True)
        assert torch.equal(scores, criterion.score(case.group, case.seen()))  # compared as they are
        paths[axis] = build_ladder(
            layer=0, axis=axis, unit_scores=scores, sizes=SIZES, unit_cost=case.group.parameters_per_unit
        )  # fmt: skip
    ladders = list(paths.values())

    def predicted(kept):
        return sum(sum(p.scores[kept[0, a] :]) * p.cost for a, p in paths.items())

    for budget in (100, 300, 500, 700):
        kept = Global().allocate(ladders, budget)
        gone = sum((p.size - kept[0, a]) * p.cost for a, p in paths.items())
        for ffn in range(1, SIZES["ffn"] + 1):
            for kv in range(1, SIZES["kv"] + 1):
                other = {(0, "ffn"): ffn, (0, "kv"): kv}
                if sum((p.size - other[0, a]) * p.cost for a, p in paths.items()) >= gone:
                    assert predicted(other) >= predicted(kept) * (1 - 1e-9)


def test_dead_inputs_leave_first_at_no_cost():
    case = make_case("llama", "ffn")
    case.inputs["mlp.down_proj"][:, [3, 11]] = 0
    scores = Sensitivity().score(case.group, case.seen())
    assert sorted(scores.argsort()[:2].tolist()) == [3, 11]
    assert scores[[3, 11]].max() < 1e-300


def test_a_duplicate_channel_is_seen_to_say_nothing_new():
    case = make_case("llama", "ffn")
    best = int(Sensitivity().score(case.group, case.seen()).argmax())
    other = (best + 1) % SIZES["ffn"]
    case.inputs["mlp.down_proj"][:, other] = case.inputs["mlp.down_proj"][:, best]
    scores = Sensitivity(ridge=0.0).score(case.group, case.seen())
    first = int(scores.argmin())
    assert first in (best, other)
    assert scores[first] < 1e-5 * scores.sort().values[1]


def test_what_the_loss_does_not_see_is_free():
    """F without damping of rank one: only the reader's action along one direction of the output counts."""
    case = make_case("llama", "ffn")
    module = "mlp.down_proj"
    direction = torch.randn(SIZES["hidden"], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    case.gradients[module][:] = torch.outer(case.gradients[module][:, 0], direction)
    case.group.reader.value[:, 4] -= direction * (direction @ case.group.reader.value[:, 4]) / direction.square().sum()
    scores = Sensitivity(damping=0.0).score(case.group, case.seen())
    assert int(scores.argmin()) == 4
    assert scores[4] < 1e-12 * scores.max()


def test_statistics_are_not_written_to():
    case = make_case("llama", "kv")
    seen, fresh = case.seen(), case.seen()
    Sensitivity().score(case.group, seen)
    for kind in (Gram, OutputGradientGram):
        module = case.group.reader.module
        assert torch.equal(seen[module][kind].matrix, fresh[module][kind].matrix)


def test_wide_readers_are_done_in_float32_and_rank_alike(monkeypatch):
    case = make_case("llama", "ffn")
    exact = Sensitivity().score(case.group, case.seen())
    monkeypatch.setattr("secateur.criteria.path.WIDE", 1)
    torch.testing.assert_close(Sensitivity().score(case.group, case.seen()), exact, rtol=1e-4, atol=0)


def test_envelope_by_hand():
    steps = torch.tensor([1.0, 3.0, 2.0, 2.0, 9.0, 5.0, 4.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 7 / 3, 7 / 3, 7 / 3, 6.0, 6.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(envelope(steps), expected)


def test_ascending_is_strict_and_changes_nothing_else():
    slopes = torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    found = ascending(slopes)
    assert (found.diff() > 0).all()
    torch.testing.assert_close(found, slopes, rtol=1e-15, atol=1e-300)


def test_a_head_that_is_always_silent_costs_nothing():
    case = make_case("llama", "kv")
    case.inputs["self_attn.o_proj"][:, case.group.unit_of_column == 1] = 0
    scores = Sensitivity().score(case.group, case.seen())
    assert int(scores.argmin()) == 1
    assert scores[1] < 1e-300
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", ["ridge", "damping", "gates"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=name):
        Sensitivity(**{name: value})
