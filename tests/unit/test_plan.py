"""The Plan: what it accepts, that JSON keeps it, and what its units cost."""

import json
import random
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import axes
from secateur.errors import UserError
from secateur.plan import Plan, parameters, read_record, unit_cost
from tests.contract.masking import draw_kept

SIZES = {"hidden": 8, "kv": 4, "group": 3, "head_dim": 2, "ffn": 10}
SPECS = tuple(
    axes.parse(text)
    for text in (
        "hidden", "(kv group head_dim) <- hidden", "(kv head_dim) <- hidden", "(kv head_dim)", "hidden <- (kv group head_dim)",
        "ffn <- hidden", "hidden <- ffn",
    )
)  # fmt: skip


def block(number: int, settings: Plan) -> int:
    return parameters(SPECS, settings.layer_sizes(number))


def plan(*layers, **options) -> Plan:
    return Plan(**{"model_type": "llama", "fingerprint": "f", "sizes": SIZES, "layers": layers, **options})


@st.composite
def plans(draw) -> Plan:
    rng = random.Random(draw(st.integers(0, 2**32)))
    pruned = draw(st.lists(st.sets(st.sampled_from(axes.PRUNABLE)), min_size=1, max_size=4))
    dropped = tuple(sorted(draw(st.sets(st.integers(0, len(pruned) - 1), max_size=len(pruned) - 1))))
    layers = tuple(
        {} if i in dropped else draw_kept(SIZES, sorted(chosen, key=axes.PRUNABLE.index), rng)
        for i, chosen in enumerate(pruned)
    )
    settings = draw(
        st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=3)
    )
    return plan(*layers, settings=settings, seed=draw(st.integers(0, 2**62)), dropped=dropped)


@given(plans())
def test_json_keeps_a_plan(given: Plan):
    assert Plan.from_json(given.to_json()) == given
    assert Plan.from_json(Plan.from_json(given.to_json()).to_json()).to_json() == given.to_json()


@given(plans())
def test_parameters_after_pruning_are_those_of_the_kept_shapes(given: Plan):
    for number, kept in enumerate(given.layers):
        elements = 0
        for spec in SPECS:
            shape = [
                len(axes.dim_index(dim, SIZES, kept))
                if axes.dim_index(dim, SIZES, kept) is not None
                else axes.dim_size(dim, SIZES)
                for dim in spec.dims
            ]
            elements += prod(shape)
        assert parameters(SPECS, given.layer_sizes(number)) == elements
    whole = sum(block(i, given) for i in range(len(given.layers)))
    assert given.block_parameters(SPECS) == whole - sum(block(i, given) for i in given.dropped)


@pytest.mark.parametrize(("axis", "cost"), [("ffn", 16), ("kv", 2 * (3 * 2 * 8) + 2 * 8 + 2), ("group", 2 * 2 * 8)])
def test_a_unit_costs_what_leaves_with_it(axis: str, cost: int):
    assert unit_cost(SPECS, SIZES, axis) == cost


@pytest.mark.parametrize(
    "kept",
    [
        {"ffn": ()}, {"ffn": (1, 1)}, {"ffn": (2, 1)}, {"ffn": (0, 10)}, {"ffn": (-1, 2)}, {"hidden": (0,)}, {"nothing": (0,)},
        {"group": ((0,), (1,))}, {"group": ((0,), (1,), (0, 1), (2,))}, {"kv": (0, 2), "group": ((0,), (1,), (1,), (1,))},
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_applied_is_refused(kept: dict):
    with pytest.raises(UserError, match="layer 1"):
        plan({}, kept)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"format": 99}', "not json", '{"format": 1, "layers": 3}'])
def test_text_that_is_no_plan_is_refused(text: str):
    with pytest.raises(UserError, match="plan"):
        Plan.from_json(text)


def test_layers_of_equal_sizes_are_uniform_whichever_units_they_keep():
    assert plan({"ffn": (0, 1)}, {"ffn": (4, 7)}).uniform
    assert not plan({"ffn": (0, 1)}, {"ffn": (4,)}).uniform
    assert not plan({"ffn": (0, 1)}, {}).uniform


def test_layers_that_leave_whole_count_for_nothing():
    given = plan({"ffn": (0, 1)}, {}, {"ffn": (4, 7)}, {}, dropped=(1, 3))
    assert given.remaining == (0, 2) and given.uniform
    assert given.block_parameters(SPECS) == 2 * block(0, given)
    assert not plan({"ffn": (0, 1)}, {}, {}, dropped=(1,)).uniform


@pytest.mark.parametrize(
    ("dropped", "why"),
    [
        ((0, 0), "distinct"), ((2, 0), "ascending"), ((3,), "0 to 2"), ((-1,), "0 to 2"), ((0, 1, 2), "at least one layer"),
        ((True,), "whole numbers"), ((1,), "layer 1 .* axes of it are pruned too: ffn"),
    ],
)  # fmt: skip
def test_layers_that_cannot_leave_are_refused(dropped: tuple, why: str):
    with pytest.raises(UserError, match=why):
        plan({}, {"ffn": (0, 1)}, {}, dropped=dropped)


def test_a_plan_from_before_layers_could_leave_is_read():
    given = plan({"ffn": (0, 1)}, {}, settings={"a": 1}, seed=3)
    body = json.loads(given.to_json())
    del body["dropped"]
    assert Plan.from_json(json.dumps(body)) == given


@pytest.mark.parametrize("dropped", [1, None, "0", [[0]], {"0": 1}])
def test_dropped_layers_that_are_no_list_of_numbers_are_refused(dropped: object):
    with pytest.raises(UserError, match="plan"):
        Plan.from_json(json.dumps({**json.loads(plan({}, {}).to_json()), "dropped": dropped}))


def test_a_record_that_is_damaged_is_named(tmp_path: Path):
    assert read_record(tmp_path) is None
    (tmp_path / "secateur.json").write_text(json.dumps({"stock": True}))
    with pytest.raises(UserError, match="secateur.json"):
        read_record(tmp_path)
