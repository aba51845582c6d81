"""Settings: what is allowed, and what a person reads when it is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import axes
from secateur.errors import UserError
from secateur.settings import BYTES, COUNTS, Axis, EvalSettings, PruneSettings, parse_bytes, parse_count, parse_layers


def prune_settings(**values: Any) -> PruneSettings:
    return PruneSettings(**{"model": "m", "out": "o", **values})


@pytest.mark.parametrize(
    ("text", "value"),
    [("5.5B", 5_500_000_000), ("800M", 800_000_000), ("7000000", 7_000_000), ("12k", 12_000), (" 1.5 T ", 1_500_000_000_000)],
)
def test_count(text: str, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2GiB", 2 * 2**30),
        ("900MB", 900_000_000),
        ("1.5 kib", 1536),
        ("512", 512),
        ("512B", 512),
        ("1TiB", 2**40),
        ("3kB", 3000),
    ],
)
def test_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "5Q", "-3B", "0", "0.1", "B", "1e9", "5,5B", "nan"])
def test_bad_count(text: str) -> None:
    with pytest.raises(UserError, match=f"(?s){text!r}.*such as 5.5B.*K, M, B, T"):
        parse_count(text)


@pytest.mark.parametrize("text", ["9G", "9 gigabytes", "", "-1GiB", "0GiB"])
def test_bad_bytes(text: str) -> None:
    with pytest.raises(UserError, match=f"(?s){text!r}.*such as 2GiB.*TB, TiB"):
        parse_bytes(text)


@given(st.integers(1, 10**6), st.sampled_from(sorted(BYTES)))
def test_every_unit_of_bytes(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number * BYTES[unit]


@given(st.integers(1, 10**6), st.sampled_from(sorted(COUNTS)))
def test_every_unit_of_a_count(number: int, unit: str) -> None:
    assert parse_count(f"{number}{unit}") == number * COUNTS[unit]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", set()),
        ("0-2,-1", {0, 1, 2, 7}),
        ("3", {3}),
        ("-3--1", {5, 6, 7}),
        ("6--1", {6, 7}),
        (" 1 , 4-5,", {1, 4, 5}),
        ("0,0,-8", {0}),
        ("0-7", set(range(8))),
    ],
)
def test_layers(text: str, chosen: set[int]) -> None:
    assert parse_layers(text, 8) == chosen


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("8", "layer 8 of '8' does not exist: the model has 8 layers"),
        ("-9", "layer -9"),
        ("5-2", "runs backwards"),
        ("-1-0", "runs backwards"),
        ("first", "'first' of 'first' is not a layer"),
        ("1..3", "is not a layer"),
        ("1-2-3", "is not a layer"),
    ],
)
def test_bad_layers(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_layers(text, 8)


@given(st.sets(st.integers(-12, 11)))
def test_layers_are_numbered_from_both_ends(numbers: set[int]) -> None:
    assert parse_layers(",".join(map(str, numbers)), 12) == {number % 12 for number in numbers}


def test_defaults() -> None:
    settings = prune_settings(ratio=0.3)
    assert (settings.method, settings.effort, settings.round_to) == (None, None, 1)
    own = (settings.gradient, settings.allocation, settings.compensate, settings.protect, settings.axes)
    assert own == (None,) * 5  # the method's own
    assert (settings.samples, settings.seq_len, settings.seed) == (128, 128, 0)
    assert settings.out == Path("o")
    assert not settings.trust_remote_code


def test_axes_are_those_of_the_tables() -> None:
    assert set(get_args(Axis)) == set(axes.PRUNABLE)


def test_axes_from_text() -> None:
    assert prune_settings(ratio=0.3, axes="group, ffn").axes == ("group", "ffn")


def test_settings_are_json() -> None:
    settings = prune_settings(target_size="9GiB", run_dir=Path("r"), axes="kv,ffn")
    body = json.loads(json.dumps(settings.to_json()))
    assert (body["out"], body["run_dir"], body["target_size"], body["axes"]) == ("o", "r", "9GiB", ["kv", "ffn"])
    assert PruneSettings(**{**body, "axes": tuple(body["axes"])}) == settings


def test_settings_do_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        prune_settings(ratio=0.3).ratio = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf"), "0.3", 0, 1])
def test_ratio_outside(ratio: object) -> None:
    with pytest.raises(UserError) as caught:
        prune_settings(ratio=ratio)
    assert f"ratio = {ratio!r} is not allowed" in str(caught.value)
    assert "above 0 and below 1" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "no target was given. Exactly one of ratio, target_params, target_size"),
        ({"ratio": 0.2, "target_params": "5B"}, "ratio = 0.2 and target_params = '5B' was given. Exactly one"),
        ({"target_size": "9G"}, "target_size: '9G' is not a size"),
        ({"target_params": "many"}, "target_params: 'many' is not a number of parameters"),
        ({"max_memory": "2", "ratio": 0.1, "protect": "x"}, "protect: 'x' of 'x' is not a layer"),
        ({"ratio": 0.2, "max_memory": "lots"}, "max_memory: 'lots' is not a size"),
        ({"ratio": 0.2, "ration": 0.3}, "unknown setting 'ration'. Did you mean ratio"),
        ({"ratio": 0.2, "compensate": ""}, "compensate = '' is not allowed"),
        ({"ratio": 0.2, "method": ""}, "method = '' is not allowed"),
        (
            {"ratio": 0.2, "effort": "bst"},
            "effort = 'bst' is not allowed. Did you mean best.* Choose 'fast', 'balanced' or 'best'",
        ),
        (
            {"ratio": 0.2, "effort": "best", "method": "flap"},
            "method = 'flap' and effort = 'best' were given, and an effort is a choice of method. Give one of them",
        ),
        ({"ratio": 0.2, "axes": "kv,fn"}, "axes = 'fn' is not allowed. Did you mean ffn"),
        ({"ratio": 0.2, "axes": "kv,kv"}, "axes = 'kv,kv' is not allowed.* each once"),
        ({"ratio": 0.2, "axes": ()}, "axes = '' is not allowed"),
        ({"ratio": 0.2, "samples": 0}, "samples = 0 is not allowed: it must be a number of calibration sequences, 1 or more"),
        ({"ratio": 0.2, "seq_len": 1}, "seq_len = 1 is not allowed"),
        ({"ratio": 0.2, "seed": -1}, "seed = -1 is not allowed"),
        ({"ratio": 0.2, "round_to": 0}, "round_to = 0 is not allowed"),
        ({"ratio": 0.2, "format": "onnx"}, "format = 'onnx' is not allowed.* Choose 'auto', 'stock', 'unequal' or 'gguf'"),
        ({"ratio": 0.2, "device": "gpu"}, "device = 'gpu' is not allowed: it must be cpu, cuda or cuda:N"),
        ({"ratio": 0.2, "dtype": "int8"}, "dtype = 'int8' is not allowed.* Choose 'auto', 'bf16', 'fp16' or 'fp32'"),
        ({"ratio": 0.2, "model": ""}, "model = '' is not allowed: it must be a directory with a checkpoint, or a hub id"),
        ({"ratio": 0.2, "ridge": -1.0}, "ridge = -1.0 is not allowed"),
        ({"ratio": 0.2, "out": None}, "no output directory was given"),
    ],
)
def test_what_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"(?s){told}") as caught:
        prune_settings(**values)
    assert "pydantic" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_problem_is_told() -> None:
    with pytest.raises(UserError, match="samples = 0.*dtype = 'int8'"):
        prune_settings(ratio=0.2, samples=0, dtype="int8")


def test_a_missing_model() -> None:
    with pytest.raises(UserError, match="'model' is missing. Give a directory with a checkpoint"):
        PruneSettings(ratio=0.3)  # type: ignore[call-arg]


def test_a_dry_run_needs_no_output() -> None:
    assert PruneSettings(model="m", ratio=0.3, dry_run=True).out is None


def test_evaluation_settings() -> None:
    settings = EvalSettings(model="m")
    assert (settings.seq_len, settings.bos, settings.max_tokens) == (128, "auto", None)
    with pytest.raises(UserError, match="max_tokens = 1 is not allowed"):
        EvalSettings(model="m", max_tokens=1)


def test_settings_import_no_torch() -> None:
    code = "import sys, secateur.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
