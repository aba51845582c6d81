"""Each criterion that reads gradients against its naive oracle, and what its formula promises."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch

from secateur.criteria import CRITERIA
from secateur.criteria.coupling import MATRIX_NORMS, REDUCTIONS
from secateur.criteria.fms import FORMS, Fms
from secateur.criteria.gate_fisher import GateFisher
from secateur.criteria.gate_taylor import GateTaylor
from secateur.criteria.gblm import Gblm
from secateur.criteria.taylor import Taylor
from secateur.criteria.wanda_all import WandaAll
from secateur.errors import UserError
from secateur.statistics.weight_gradient import WeightFisher, WeightGradient
from tests.contract.groups import CASES, LENGTH, SIZES, make_case
from tests.reference import scores as naive

MATRIX = pytest.mark.parametrize(("layout", "axis"), CASES)
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def check(criterion, case, seen, expected):
    found = criterion.score(case.group, seen)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


def lines_of_units(layout, axis):
    """For every coupled matrix its module and the lines of each unit, written out by hand; fused matrices one by one."""
    kv, group, d, ffn = (SIZES[a] for a in ("kv", "group", "head_dim", "ffn"))
    channels = [[c] for c in range(ffn)]
    heads = [[h * d + i for i in range(d)] for h in range(kv)]
    queries = [[h * d + i for i in range(d)] for h in range(kv * group)]
    grouped = [[k * group * d + i for i in range(group * d)] for k in range(kv)]

    def after(units, start):
        return [[start + i for i in unit] for unit in units]

    q, n = kv * group * d, kv * d
    return {
        ("llama", "ffn"): [("mlp.gate_proj", channels), ("mlp.up_proj", channels), ("mlp.down_proj", channels)],
        ("llama", "kv"): [("self_attn.q_proj", grouped), ("self_attn.k_proj", heads), ("self_attn.v_proj", heads),
                          ("self_attn.o_proj", grouped)],
        ("llama", "group"): [("self_attn.q_proj", queries), ("self_attn.o_proj", queries)],
        ("phi3", "ffn"): [("mlp.gate_up_proj", channels), ("mlp.gate_up_proj", after(channels, ffn)),
                          ("mlp.down_proj", channels)],
        ("phi3", "kv"): [("self_attn.qkv_proj", grouped), ("self_attn.qkv_proj", after(heads, q)),
                         ("self_attn.qkv_proj", after(heads, q + n)), ("self_attn.o_proj", grouped)],
        ("phi3", "group"): [("self_attn.qkv_proj", queries), ("self_attn.o_proj", queries)],
        ("gpt2", "ffn"): [("mlp.c_fc", channels), ("mlp.c_proj", channels)],
        ("gpt2", "kv"): [("attn.c_attn", after(heads, p * n)) for p in range(3)] + [("attn.c_proj", heads)],
        ("neox", "kv"): [("attention.query_key_value", [[(h * 3 + p) * d + i for i in range(d)] for h in range(kv)])
                         for p in range(3)] + [("attention.dense", heads)],
    }[layout, axis]  # fmt: skip


def parts_of(case, layout, oracle, *, absolute=False):
    """[matrix][unit][channel] from `oracle(w, x, delta)`, a matrix's elements; `absolute` is taken of the sums over lines."""
    group, values = case.group, {}
    for m in group.matrices:
        elements = oracle(m.oriented, case.inputs[m.module], case.gradients[m.module])
        sums = naive.lines(elements, by_column=m is group.reader)
        values[m.module] = [abs(v) for v in sums] if absolute else sums
    return [[[values[module][i] for i in unit] for unit in units] for module, units in lines_of_units(layout, group.axis)]


@MATRIX
@pytest.mark.parametrize("form", FORMS)
def test_fms_equals_its_oracle(layout, axis, form):
    case = make_case(layout, axis)
    seen, parts = case.seen(parts=3), parts_of(case, layout, partial(naive.fms, form=form))
    for reduction, matrix_norm in product(REDUCTIONS, MATRIX_NORMS):
        criterion = Fms(form=form, reduction=reduction, matrix_norm=matrix_norm)
        check(criterion, case, seen, naive.coupled(parts, reduction=reduction, matrix_norm=matrix_norm))


@MATRIX
@pytest.mark.parametrize("form", ["element", "vector", "second", "mixed"])
def test_taylor_equals_its_oracle(layout, axis, form):
    case = make_case(layout, axis)
    oracle = partial(naive.taylor, length=LENGTH, form=form)
    seen, parts = case.seen(parts=3), parts_of(case, layout, oracle, absolute=form == "vector")
    for reduction in REDUCTIONS:
        check(Taylor(form=form, reduction=reduction), case, seen, naive.coupled(parts, reduction=reduction))


@MATRIX
@pytest.mark.parametrize(("norm", "alpha"), [("l2", 100.0), ("l1", 0.3)])
def test_gblm_equals_its_oracle(layout, axis, norm, alpha):
    case = make_case(layout, axis)
    samples = len(case.inputs[case.group.reader.module]) // LENGTH
    seen, parts = case.seen(parts=3), parts_of(case, layout, partial(naive.gblm, length=LENGTH, alpha=alpha, norm=norm))
    for reduction in REDUCTIONS:
        criterion = Gblm(alpha=alpha, norm=norm, samples=samples, reduction=reduction)
        check(criterion, case, seen, naive.coupled(parts, reduction=reduction))


@MATRIX
def test_gate_criteria_equal_their_oracles(layout, axis):
    case = make_case(layout, axis)
    seen, reader = case.seen(parts=3), case.group.reader
    x, delta = case.inputs[reader.module], case.gradients[reader.module]
    t = naive.gates(case.group.reader_matrix, x, delta, LENGTH, case.group.unit_of_column.tolist())
    units = [list(unit) for unit in zip(*t, strict=True)]
    check(GateTaylor(), case, seen, [abs(sum(u)) for u in units])
    check(GateTaylor(samples="absolute"), case, seen, [sum(map(abs, u)) for u in units])
    check(GateFisher(), case, seen, [sum(v**2 for v in u) for u in units])


@MATRIX
def test_absolute_sums_are_at_least_the_signed_ones(layout, axis):
    case = make_case(layout, axis)
    seen = case.seen()
    pairs = ((Taylor(), Taylor(form="vector")), (GateTaylor(samples="absolute"), GateTaylor()))
    for absolute, signed in pairs:
        large, small = absolute.score(case.group, seen), signed.score(case.group, seen)
        assert (large >= small * (1 - 1e-12)).all()
        assert (large > 1.1 * small).any()


def reordered(group, *modules):
    """The same group with its matrices in another order, for what looks at the first alone."""
    return replace(group, weights={f"{m}.weight": group.weights[f"{m}.weight"] for m in modules})


def gated_mlp():
    """A case whose gradients are autograd's, of a gated MLP without biases; and autograd's gradients of its weights."""
    case = make_case("llama", "ffn")
    w = {m: case.group.weights[f"{m}.weight"].value.clone().requires_grad_() for m in (GATE, UP, DOWN)}
    x = case.inputs[UP]
    gate, up = x @ w[GATE].T, x @ w[UP].T
    a = torch.nn.functional.silu(gate) * up
    out = a @ w[DOWN].T
    loss = (out * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)).tanh().sum()
    made = torch.autograd.grad(loss, [gate, up, out, *w.values()])
    gradients = dict(zip((GATE, UP, DOWN), made[:3], strict=True))
    inputs = {GATE: x, UP: x, DOWN: a.detach()}
    return replace(case, inputs=inputs, gradients=gradients), dict(zip(w, made[3:], strict=True))


def test_a_channels_row_of_up_and_column_of_down_and_gate_say_one_number():
    case, gradients = gated_mlp()
    seen, vector = case.seen(), Taylor(form="vector", reduction="first")
    up = vector.score(reordered(case.group, UP, GATE, DOWN), seen)
    down = vector.score(reordered(case.group, DOWN, GATE, UP), seen)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=0)
    close(up, (gradients[UP] * case.group.weights[f"{UP}.weight"].value).sum(1).abs())
    close(up, down)
    close(up, GateTaylor().score(case.group, seen))
    gate = vector.score(reordered(case.group, GATE, UP, DOWN), seen)
    assert not torch.allclose(gate, up, rtol=1e-2)
    close(Taylor(form="vector").score(case.group, seen), 2 * up + gate)


def test_scaling_up_rows_against_down_columns_changes_what_counts_the_activation_beside_the_gradient():
    case = make_case("llama", "ffn")
    scale = torch.linspace(0.1, 9, SIZES["ffn"], dtype=torch.float64)
    down, up = case.group.weights[f"{DOWN}.weight"], case.group.weights[f"{UP}.weight"]
    scaled = replace(
        case,
        group=replace(case.group, weights={
            **case.group.weights,
            down.name: replace(down, value=down.value / scale), up.name: replace(up, value=up.value * scale[:, None]),
        }),
        inputs={**case.inputs, DOWN: case.inputs[DOWN] * scale},
        gradients={**case.gradients, UP: case.gradients[UP] / scale},
    )  # fmt: skip
    same = [Taylor(form=form) for form in ("element", "vector", "second", "mixed")]
    same += [GateTaylor(), GateTaylor(samples="absolute"), GateFisher()]
    for criterion in same:
        torch.testing.assert_close(criterion.score(scaled.group, scaled.seen()), criterion.score(case.group, case.seen()))
    for criterion in (Fms(), Fms(form="mean"), Gblm(alpha=0.01)):
        before, after = criterion.score(case.group, case.seen()), criterion.score(scaled.group, scaled.seen())
        assert before.argsort().tolist() != after.argsort().tolist()


def test_gblm_weighs_its_terms_alike_however_many_samples_there_are():
    case = make_case("llama", "kv")
    twice = replace(
        case,
        inputs={m: x.repeat(2, 1) for m, x in case.inputs.items()},
        gradients={m: g.repeat(2, 1) for m, g in case.gradients.items()},
    )
    ratio = Gblm().score(twice.group, twice.seen()) / Gblm().score(case.group, case.seen())
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2**0.5), rtol=1e-12, atol=0)
    l1 = Gblm(norm="l1", alpha=0.01)
    ratio = l1.score(twice.group, twice.seen()) / l1.score(case.group, case.seen())
    assert 2**0.5 + 0.01 < ratio.min() < ratio.max() < 2


@MATRIX
def test_gblm_without_gradients_is_wanda(layout, axis):
    case = make_case(layout, axis)
    expected = WandaAll().score(case.group, case.seen()) / 4
    torch.testing.assert_close(Gblm(alpha=0.0, samples=16).score(case.group, case.seen()), expected, rtol=1e-12, atol=0)


def test_the_first_matrix_alone_is_read_where_it_alone_counts():
    case = make_case("llama", "kv")
    seen = {"self_attn.q_proj": case.seen()["self_attn.q_proj"]}
    for criterion in (Fms(reduction="first"), Taylor(reduction="first"), Gblm(reduction="first")):
        torch.testing.assert_close(criterion.score(case.group, seen), criterion.score(case.group, case.seen()))


@pytest.mark.parametrize("matrix_norm", MATRIX_NORMS)
def test_a_matrix_of_zeros_adds_nothing(matrix_norm):
    case = make_case("llama", "ffn")
    fms = Fms(matrix_norm=matrix_norm)
    without = fms.score(reordered(case.group, UP, DOWN), case.seen())
    case.group.weights[f"{GATE}.weight"].value.zero_()
    torch.testing.assert_close(fms.score(case.group, case.seen()), without)


def test_what_taylor_asks_for_follows_from_its_form():
    assert Taylor().needs == Taylor(form="vector").needs == {WeightGradient}
    assert Taylor(form="second").needs == Taylor(form="mixed").needs == {WeightFisher}


@pytest.mark.parametrize(
    ("spelled", "said"),
    [
        ("fms:form=sum", "'sum'. Allowed: product, mean"),
        ("fms:matrix_norm=l1", "'l1'. Allowed: none, mean, l2"),
        ("fms:reduction=second", "'second'. Allowed: sum, mean, max, prod, first"),
        ("taylor:form=first", "'first'. Allowed: element, vector, second, mixed"),
        ("taylor:reduction=none", "'none'. Allowed: sum, mean, max, prod, first"),
        ("gate-taylor:samples=all", "'all'. Allowed: signed, absolute"),
        ("gblm:norm=linf", "'linf'. Allowed: l2, l1"),
        ("gblm:alpha=-1", "-1.0. Allowed: a finite number, 0 or more"),
        ("gblm:alpha=nan", "nan. Allowed: a finite number"),
        ("gblm:samples=0", "0. Allowed: a whole number, 1 or more"),
        ("gblm:reduction=min", "'min'. Allowed: sum, mean, max, prod, first"),
    ],
)
def test_options_that_do_not_exist_are_refused(spelled, said):
    method, _, rest = spelled.partition(":")
    with pytest.raises(UserError) as refused:
        CRITERIA.spelled(spelled)
    assert str(refused.value).startswith(f"{method}'s {rest.partition('=')[0]} is {said}")
