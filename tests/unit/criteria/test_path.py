"""The path's precision: what float32 says is checked in float64, and done again where it is wrong."""

import pytest
import torch

from secateur.criteria import path as module
from secateur.criteria.elimination import Inverse, eliminate, weighted
from secateur.criteria.obs import Obs
from secateur.criteria.path import recomputed, rows_of
from secateur.criteria.sensitivity import Sensitivity
from secateur.statistics.gram import Gram
from tests.contract.groups import CASES, make_case

MATRIX = pytest.mark.parametrize(("layout", "axis"), CASES)
BOTH = pytest.mark.parametrize("criterion", [Obs(), Sensitivity()], ids=["obs", "sensitivity"])


@pytest.fixture
def types(monkeypatch):
    """Every reader counts as wide; the types that paths are done in."""
    seen: list[torch.dtype] = []

    def watched(a, b, *rest, **options):
        seen.append(a.dtype)
        return eliminate(a, b, *rest, **options)

    monkeypatch.setattr(module, "WIDE", 1)
    monkeypatch.setattr(module, "eliminate", watched)
    return seen


@MATRIX
@pytest.mark.parametrize("at", [0, 1, 2])
def test_costs_computed_anew_are_those_of_the_path(layout, axis, at):
    case = make_case(layout, axis)
    group, gram = case.group, case.seen()[case.group.reader.module][Gram]
    w = group.reader_matrix
    inverse = Inverse.of(gram, 0.02)
    path = eliminate(weighted(group.reader, None, torch.float64), inverse.matrix, group.unit_of_column, rows=rows_of(group))
    found = recomputed(
        path, gram, inverse.without_matrix(), group.unit_of_column, lambda v: v.mT @ w.mT @ w @ v, at=at, many=1000
    )
    torch.testing.assert_close(found, path.cost[at:], rtol=1e-9, atol=0)


@MATRIX
@BOTH
def test_float32_that_agrees_is_taken(criterion, layout, axis, types):
    case = make_case(layout, axis)
    criterion.score(case.group, case.seen())
    assert types == [torch.float32]


@BOTH
def test_dead_inputs_agree_too(criterion, types):
    case = make_case("llama", "ffn")
    case.inputs[case.group.reader.module][:, [0, 3, 11]] = 0
    scores = criterion.score(case.group, case.seen())
    assert types == [torch.float32]
    assert sorted(scores.argsort()[:3].tolist()) == [0, 3, 11]


@BOTH
def test_where_float32_is_wrong_the_path_is_done_again_in_float64(criterion, types, monkeypatch):
    """Every input is nearly the same one, so that float32 loses all but the common part."""
    case = make_case("llama", "ffn", tokens=200)
    x = case.inputs[case.group.reader.module]
    x.mul_(3e-4).add_(x[:, :1] * 1e4)
    narrow = type(criterion)(ridge=1e-13)
    found = narrow.score(case.group, case.seen())
    assert types == [torch.float32, torch.float64]
    monkeypatch.setattr(module, "WIDE", 8192)
    assert torch.equal(found, narrow.score(case.group, case.seen()))


def test_a_block_that_rounding_makes_indefinite_is_done_again(types, monkeypatch):
    case = make_case("llama", "kv")

    def failing(a, b, *rest, **options):
        types.append(a.dtype)
        if a.dtype == torch.float32:
            raise torch.linalg.LinAlgError("not positive definite")
        return eliminate(a, b, *rest, **options)

    monkeypatch.setattr(module, "eliminate", failing)
    found = Obs().score(case.group, case.seen())
    assert types == [torch.float32, torch.float64]
    monkeypatch.setattr(module, "WIDE", 8192)
    assert torch.equal(found, Obs().score(case.group, case.seen()))
