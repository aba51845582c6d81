"""Each criterion against its naive oracle, and the invariances its formula promises."""

from dataclasses import replace

import pytest
import torch

from secateur.criteria.flap import Flap
from secateur.criteria.magnitude import CoupledMagnitude, Magnitude
from secateur.criteria.ppsp import PPsp
from secateur.criteria.wanda_all import WandaAll
from secateur.criteria.wanda_sp import WandaSp
from secateur.errors import UserError
from secateur.statistics.moments import Moments
from tests.contract.groups import CASES, SIZES, make_case
from tests.reference import scores as naive

MATRIX = pytest.mark.parametrize(("layout", "axis"), CASES)


def check(criterion, case, expected):
    found = criterion.score(case.group, case.seen(parts=3))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


@MATRIX
def test_reader_criteria_equal_their_oracles(layout, axis):
    case = make_case(layout, axis)
    w, x = case.group.reader_matrix, case.inputs[case.group.reader.module]
    unit = case.group.unit_of_column.tolist()
    check(Magnitude(), case, naive.magnitude(w, unit))
    check(WandaSp(), case, naive.wanda_sp(w, x, unit))
    check(PPsp(), case, naive.ppsp(w, x, unit))
    for metric in ("wifv", "ifv", "wifn"):
        squared = axis != "ffn"
        check(Flap(metric=metric), case, naive.flap(w, x, unit, metric=metric, squared=squared))
        check(Flap(metric=metric, squared_heads=False), case, naive.flap(w, x, unit, metric=metric, squared=False))


def row_units(layout, axis):
    """Units of the rows of every matrix that is not the reader, written out by hand."""
    kv, group, d, ffn = (SIZES[a] for a in ("kv", "group", "head_dim", "ffn"))
    q = {
        "kv": [h // group for h in range(kv * group) for _ in range(d)],
        "group": [h for h in range(kv * group) for _ in range(d)],
    }
    k = {"kv": [h for h in range(kv) for _ in range(d)], "group": [-1] * (kv * d)}
    return {
        ("llama", "ffn"): {"mlp.gate_proj": range(ffn), "mlp.up_proj": range(ffn)},
        ("llama", "kv"): {"self_attn.q_proj": q["kv"], "self_attn.k_proj": k["kv"], "self_attn.v_proj": k["kv"]},
        ("llama", "group"): {"self_attn.q_proj": q["group"]},
        ("phi3", "ffn"): {"mlp.gate_up_proj": [*range(ffn), *range(ffn)]},
        ("phi3", "kv"): {"self_attn.qkv_proj": [*q["kv"], *k["kv"], *k["kv"]]},
        ("phi3", "group"): {"self_attn.qkv_proj": [*q["group"], *k["group"], *k["group"]]},
        ("gpt2", "ffn"): {"mlp.c_fc": range(ffn)},
        ("gpt2", "kv"): {"attn.c_attn": k["kv"] * 3},
        ("neox", "kv"): {"attention.query_key_value": [h for h in range(kv) for _ in range(3 * d)]},
    }[layout, axis]


@MATRIX
def test_coupled_criteria_equal_their_oracles(layout, axis):
    case = make_case(layout, axis)
    group = case.group
    rows = row_units(layout, axis)
    assert {m.module for m in group.matrices} == {*rows, group.reader.module}
    wanda = [naive.wanda_sp(group.reader_matrix, case.inputs[group.reader.module], group.unit_of_column.tolist())]
    size = {1: [], 2: []}
    for power in size:
        size[power].append(
            [sum(c) for c in naive.by_unit(naive.power_sums(group.reader_matrix, power), group.unit_of_column.tolist())]
        )
    for matrix in group.matrices:
        if matrix.module in rows:
            unit = list(rows[matrix.module])
            wanda.append(naive.wanda_rows(matrix.oriented, case.inputs[matrix.module], unit))
            for power in size:
                size[power].append([sum(c) for c in naive.by_unit(naive.power_sums(matrix.oriented.T, power), unit)])
    check(WandaAll(), case, [sum(parts) for parts in zip(*wanda, strict=True)])
    for power, parts in size.items():
        check(CoupledMagnitude(power=power), case, [sum(p) / len(parts) for p in zip(*parts, strict=True)])


def test_wifv_is_the_error_of_removing_one_channel_whose_mean_moves_into_the_bias():
    case = make_case("llama", "ffn")
    w, x = case.group.reader_matrix, case.inputs["mlp.down_proj"]
    wifv = Flap().score(case.group, case.seen())
    for u in range(SIZES["ffn"]):
        keep = [j for j in range(SIZES["ffn"]) if j != u]
        error = naive.output_error(w, x, w[:, keep], keep, bias=w[:, u] * x[:, u].mean())
        assert error == pytest.approx(float(wifv[u]) * (len(x) - 1), rel=1e-10)


def test_scaling_up_rows_against_down_columns_changes_magnitude_only():
    case = make_case("llama", "ffn")
    scale = torch.linspace(0.1, 9, SIZES["ffn"], dtype=torch.float64)
    down = case.group.weights["mlp.down_proj.weight"]
    up = case.group.weights["mlp.up_proj.weight"]
    scaled = replace(
        case,
        group=replace(case.group, weights={
            **case.group.weights,
            down.name: replace(down, value=down.value / scale), up.name: replace(up, value=up.value * scale[:, None]),
        }),
        inputs={**case.inputs, "mlp.down_proj": case.inputs["mlp.down_proj"] * scale},
    )  # fmt: skip
    for criterion in (WandaSp(), Flap(), Flap(metric="wifn"), PPsp()):
        torch.testing.assert_close(criterion.score(scaled.group, scaled.seen()), criterion.score(case.group, case.seen()))
    for criterion in (Magnitude(), CoupledMagnitude()):
        before, after = criterion.score(case.group, {}), criterion.score(scaled.group, {})
        assert before.argsort().tolist() != after.argsort().tolist()


def test_a_duplicate_channel_does_not_look_free_to_remove():
    """A criterion of single units cannot see that one of a pair says nothing new; least squares can (its own test)."""
    case = make_case("llama", "ffn")
    for criterion in (WandaSp(), Flap(), PPsp()):
        best = int(criterion.score(case.group, case.seen()).argmax())
        other = (best + 1) % SIZES["ffn"]
        case.inputs["mlp.down_proj"][:, other] = case.inputs["mlp.down_proj"][:, best]
        case.group.reader.value[:, other] = case.group.reader.value[:, best]
        found = criterion.score(case.group, case.seen())
        assert sorted(found.argsort(descending=True)[:2].tolist()) == sorted([best, other])


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match=r"'wvif'.*wifv, wifn, ifv"):
        Flap(metric="wvif")
    for kind in (Magnitude, CoupledMagnitude):
        with pytest.raises(UserError, match="3"):
            kind(power=3)


def test_a_variance_of_one_token_is_refused():
    case = make_case("llama", "ffn", tokens=1)
    with pytest.raises(UserError, match="at least 2 tokens, and 1"):
        Flap().score(case.group, case.seen())
    assert WandaSp().score(case.group, case.seen()).isfinite().all()


def test_ppsp_needs_a_token():
    with pytest.raises(UserError, match="none was seen"):
        _ = Moments.of(torch.zeros(0, 3)).second_moment
