"""Peak memory of a LLaMA-2-7B-shaped checkpoint, by the benchmark that measures it, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "seven_b.py"


def run(*arguments: object) -> dict:
    done = subprocess.run([sys.executable, str(BENCHMARK), *map(str, arguments)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", ["layer", "single"])
def test_scoring_and_slicing_stay_within_one_layers_memory(layout: str, tmp_path: Path):
    run("make", tmp_path / "model", "--layers", 3, "--layout", layout)
    assert run("score", tmp_path / "model")["peak_gib"] <= 1.25
    assert run("slice", tmp_path / "model", "--runs", 1)["peak_gib"] <= 1.25
    if layout == "single":
        assert run("score", tmp_path / "model", "--gram")["peak_gib"] <= 2.5
