"""What every registered criterion must pass."""

import dataclasses

import pytest
import torch

from secateur.criteria import CRITERIA
from secateur.criteria.criterion import ColumnCriterion, Criterion, standardise, unit_scores
from secateur.errors import UserError
from tests.contract.groups import CASES, Case, make_case

NAMES = sorted(CRITERIA.names())
# Options that change what is asked for, or how it is put together.
VARIANTS = [
    "fms:form=mean,matrix_norm=l2,reduction=max", "taylor:form=vector", "taylor:form=second", "taylor:form=mixed,reduction=prod",
    "gate-taylor:samples=absolute", "gblm:norm=l1,reduction=mean",
]  # fmt: skip
MATRIX = pytest.mark.parametrize(("layout", "axis"), CASES)
KINDS = pytest.mark.parametrize("name", NAMES)
EVERY = pytest.mark.parametrize("name", NAMES + VARIANTS)


class Recording(dict):
    """Statistics that remember what was asked for, and hold no more than was declared."""

    def __init__(self, held, asked, prefix=()):
        super().__init__(held)
        self.asked, self.prefix = asked, prefix

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if isinstance(value, dict):
            return Recording(value, self.asked, (key,))
        self.asked.add((*self.prefix, key))
        return value


def declared(criterion: Criterion, case: Case) -> dict[str, dict[type, object]]:
    modules = {case.group.reader.module} if criterion.inputs == "reader" else {m.module for m in case.group.matrices}
    places = modules | {case.group.axis}
    return {p: {t: s for t, s in kinds.items() if t in criterion.needs} for p, kinds in case.seen().items() if p in places}


@KINDS
def test_is_a_frozen_keyword_only_dataclass_that_says_what_it_is(name):
    kind = CRITERIA[name]
    criterion = kind()
    assert isinstance(criterion, Criterion)
    assert criterion.name == name
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(kind))
    assert name == "random" or criterion.paper.startswith("https://")


@EVERY
@MATRIX
def test_gives_one_finite_float64_score_per_unit(name, layout, axis):
    case = make_case(layout, axis)
    scores = CRITERIA.spelled(name).score(case.group, case.seen())
    assert scores.shape == (case.group.num_units,)
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()
    assert len(scores.unique()) == len(scores)


@EVERY
@MATRIX
def test_does_not_depend_on_how_calibration_is_split(name, layout, axis):
    case = make_case(layout, axis)
    criterion = CRITERIA.spelled(name)
    whole = criterion.score(case.group, case.seen())
    for parts in (2, 7, 40):
        torch.testing.assert_close(criterion.score(case.group, case.seen(parts)), whole, rtol=1e-10, atol=0)


def shuffles(case: Case):
    """(kept, the permutation of units it makes)."""
    generator = torch.Generator().manual_seed(5)
    sizes, axis = case.group.sizes, case.group.axis
    if axis == "group":
        rows = [torch.randperm(sizes["group"], generator=generator) for _ in range(sizes["kv"])]
        return {"group": [r.tolist() for r in rows]}, torch.cat([kv * sizes["group"] + r for kv, r in enumerate(rows)])
    order = torch.randperm(sizes[axis], generator=generator)
    return {axis: order.tolist()}, order


@pytest.mark.parametrize("name", [n for n in NAMES + VARIANTS if n != "random"])
@MATRIX
def test_permuting_units_permutes_scores(name, layout, axis):
    case = make_case(layout, axis)
    kept, order = shuffles(case)
    shuffled = case.selected(kept)
    criterion = CRITERIA.spelled(name)
    for score in (criterion.score, lambda *a: standardise(criterion, *a)):
        before, after = score(case.group, case.seen()), score(shuffled.group, shuffled.seen())
        torch.testing.assert_close(after, before[order], rtol=1e-10, atol=1e-12)


def test_random_scores_are_the_seeds_the_layers_and_the_axes_alone():
    random = CRITERIA["random"]()
    groups = {(layout, axis): make_case(layout, axis).group for layout, axis in CASES}
    assert torch.equal(random.score(groups["llama", "ffn"], {}), random.score(groups["phi3", "ffn"], {}))
    base = random.score(groups["llama", "kv"], {})
    for other in (
        dataclasses.replace(groups["llama", "kv"], seed=1),
        dataclasses.replace(groups["llama", "kv"], layer=2),
    ):
        assert not torch.equal(base, random.score(other, {}))
    assert not torch.equal(base, random.score(groups["llama", "group"], {})[:3])


@EVERY
@MATRIX
def test_is_deterministic_and_writes_to_nothing_it_is_given(name, layout, axis):
    case, fresh = make_case(layout, axis), make_case(layout, axis)
    criterion, seen = CRITERIA.spelled(name), case.seen()
    first, second = criterion.score(case.group, seen), criterion.score(case.group, seen)
    assert torch.equal(first, second)
    for n, matrix in case.group.weights.items():
        assert torch.equal(matrix.value, fresh.group.weights[n].value)
    for place, kinds in fresh.seen().items():
        for kind, statistic in kinds.items():
            for field, value in statistic.to_tensors().items():
                assert torch.equal(seen[place][kind].to_tensors()[field], value)


@EVERY
@MATRIX
def test_asks_for_what_it_declares_and_nothing_else(name, layout, axis):
    case = make_case(layout, axis)
    criterion = CRITERIA.spelled(name)
    held, asked = declared(criterion, case), set()
    limited = criterion.score(case.group, Recording(held, asked))
    assert torch.equal(limited, criterion.score(case.group, case.seen()))
    assert asked == {(module, kind) for module, kinds in held.items() for kind in kinds}


@EVERY
@MATRIX
def test_bf16_and_float64_weights_rank_alike(name, layout, axis):
    case = make_case(layout, axis)
    criterion, seen = CRITERIA.spelled(name), case.seen()
    half = case.cast(torch.bfloat16)
    same = criterion.score(half.group, seen)
    assert torch.equal(same, criterion.score(half.cast(torch.float64).group, seen))
    exact = criterion.score(case.group, seen)
    # Of the weights alone in bf16, and of what is gathered with such weights too.
    for rounded in (same, criterion.score(half.group, half.seen())):
        a, b = exact.argsort().argsort().double(), rounded.argsort().argsort().double()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.95


@EVERY
@MATRIX
def test_dead_channels_give_finite_scores(name, layout, axis):
    case = make_case(layout, axis)
    reader = case.group.reader
    reader.oriented[:, 0] = 0
    case.inputs[reader.module][:, :2] = 0
    criterion = CRITERIA.spelled(name)
    for standardised in (False, True):
        assert unit_scores(criterion, case.group, case.seen(), standardised=standardised).isfinite().all()


@EVERY
@MATRIX
def test_standardised_scores_have_no_scale_of_their_own(name, layout, axis):
    case = make_case(layout, axis)
    criterion, seen = CRITERIA.spelled(name), case.seen()
    z = standardise(criterion, case.group, seen)
    if isinstance(criterion, ColumnCriterion):
        metric = criterion.columns(case.group, seen)
        by_hand = (metric - metric.mean()) / metric.std()
        expected = torch.stack([by_hand[case.group.unit_of_column == u].mean() for u in range(case.group.num_units)])
    else:
        score = criterion.score(case.group, seen)
        expected = (score - score.mean()) / score.std()
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in NAMES + VARIANTS if n != "random"])
def test_a_score_that_is_not_finite_names_layer_and_axis(name):
    case = make_case("llama", "kv")
    case.group.reader.value[0, 3] = float("nan")
    with pytest.raises(UserError, match=r"layer 1, axis 'kv'.*NaN"):
        unit_scores(CRITERIA.spelled(name), case.group, case.seen())
