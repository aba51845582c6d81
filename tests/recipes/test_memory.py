"""Peak memory of a LLaMA-2-7B-shaped checkpoint, by the benchmark that measures it, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments: object, benchmark: str = "seven_b.py") -> dict:
    command = [sys.executable, str(BENCHMARKS / benchmark), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", ["layer", "single"])
def test_scoring_and_slicing_stay_within_one_layers_memory(layout: str, tmp_path: Path):
    run("make", tmp_path / "model", "--layers", 3, "--layout", layout)
    assert run("score", tmp_path / "model")["peak_gib"] <= 1.25
    assert run("slice", tmp_path / "model", "--runs", 1)["peak_gib"] <= 1.25
    if layout == "single":
        assert run("score", tmp_path / "model", "--gram")["peak_gib"] <= 2.5


@pytest.mark.parametrize(("what", "most"), [("gate-gradient", 1.6), ("weight-gradient", 2.2), ("weight-fisher", 1.6)])
def test_gradients_stay_within_one_layers_memory(what: str, most: float, tmp_path: Path):
    run("make", tmp_path / "model", "--layers", 2)
    assert run("memory", tmp_path / "model", what, benchmark="seven_b_gradients.py")["peak_gib"] <= most


def test_an_export_stays_within_one_weights_memory(tmp_path: Path):
    run("make", tmp_path / "model", "--layers", 2)
    command = [sys.executable, "-m", "secateur", "export", str(tmp_path / "model"), "--to", "gguf", "--dtype", "f16"]
    done = subprocess.run([*command, "--no-check", "--no-tokenizer", "--json"], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["peak_memory_bytes"] <= 1.25 * 2**30
