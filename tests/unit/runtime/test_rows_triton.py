"""The kernel in Triton's interpreter, against the eager products and against sums in float64; and that it compiles for real devices."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur.runtime import rows_eager

WORKER = Path(__file__).with_name("triton_worker.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux has it)")
# Of the sum of the factors' absolute values: rounding of the result, and of float32 sums. The interpreter cuts bfloat16 off, where
# a device rounds it: so one bit more.
UNIT = {torch.float32: 2e-6, torch.float16: 2**-11 + 2e-6, torch.bfloat16: 2**-7 + 2e-6}
SMALL = {"tokens": 16, "outputs": 16, "inputs": 16, "group": 2}


def work(*args: str, **env: str) -> str:
    """What the worker prints. It finds the package where this process does."""
    places = os.pathsep.join([str(Path(__file__).parents[3]), *(path for path in sys.path if path)])
    given = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([sys.executable, str(WORKER), *args], capture_output=True, text=True, env=given, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def case(side: str, dtype: torch.dtype, number: int) -> dict:
    """Random sizes, and the rows of a part of a larger memory, where all that must not be read is NaN."""
    draw, generator = random.Random(f"{side} {dtype} {number}"), torch.Generator().manual_seed(number)
    rows, other = draw.choice([1, 7, 33, 64, 150]), draw.choice([1, 5, 16, 40, 70])
    kept = draw.randint(1, rows)
    index = torch.randperm(rows, generator=generator)[:kept].sort().values
    if number % 3 == 0:  # keys and values may be there once for each query head that reads them
        index = index.repeat_interleave(2)
    top, left = draw.randint(0, 2), draw.randint(0, 3)
    memory = torch.full((rows + 4, other + 6), float("nan"), dtype=dtype)
    weight = memory[top : top + rows, left : left + other]
    weight.index_copy_(0, index, torch.randn(len(index), other, generator=generator).to(dtype))
    inner, biased = (other, rows) if side == "to" else (len(index), other)
    leading = draw.choice([(1,), (3, 11), (2, 1), (19,), ()])
    x = torch.randn(*leading, inner, generator=generator).to(dtype)
    if number % 4 == 1 and leading:  # as a transposed tensor comes
        x = x.mT.contiguous().mT if x.ndim > 1 else x
    bias = torch.randn(biased, generator=generator).to(dtype) if draw.random() < 0.6 else None
    return {
        "side": side,
        "x": x,
        "weight": weight,
        "index": index,
        "bias": bias,
        "tile": SMALL if number % 2 else None,
    }


def exact(given: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums in float64, and those of the absolute values."""
    rows = given["weight"].double()[given["index"]]
    matrix, x, bias = (rows.mT if given["side"] == "to" else rows), given["x"].double(), given["bias"]
    if bias is None:
        return x @ matrix, x.abs() @ matrix.abs()
    bias = bias.double()[given["index"]] if given["side"] == "to" else bias.double()
    return x @ matrix + bias, x.abs() @ matrix.abs() + bias.abs()


CASES = [
    case(side, dtype, number) for side in ("to", "from") for dtype in UNIT for number in range(12)
]  # fmt: skip
NAMES = [f"{c['side']}-{str(c['x'].dtype).removeprefix('torch.')}-{n}" for n, c in enumerate(CASES)]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> list[torch.Tensor]:
    path = tmp_path_factory.mktemp("triton") / "cases.pt"
    torch.save(CASES, path)
    work("interpret", str(path))
    return torch.load(f"{path}.out")


@needs_triton
@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_the_kernel_computes_the_product(interpreted, number):
    given, found = CASES[number], interpreted[number]
    expected, size = exact(given)
    assert found.shape == expected.shape and found.dtype == given["x"].dtype
    assert bool(((found.double() - expected).abs() <= UNIT[found.dtype] * size).all())
    eager = {"to": rows_eager.to_rows, "from": rows_eager.from_rows}[given["side"]]
    same = eager(given["x"], given["weight"], given["index"], given["bias"])
    assert bool(((found.double() - same.double()).abs() <= 2 * UNIT[found.dtype] * size).all())


@needs_triton
def test_a_model_computes_with_the_kernel_what_it_does_with_copies():
    """The dense weights as they lie in the model, with biases, as Conv1D, and several matrices in one."""
    matrices = {"llama-bias": 7, "gpt2": 4, "opt": 6, "bloom": 4, "phi3": 4}
    found = [json.loads(line) for line in work("models", *matrices).splitlines()]
    assert {one["variant"]: one["calls"] for one in found} == {variant: 2 * count for variant, count in matrices.items()}
    assert all(one["difference"] <= 1e-5 for one in found), found


@needs_triton
def test_what_the_kernel_takes():
    from secateur.runtime import rows_triton

    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    with torch.no_grad():
        assert rows_triton.takes(x.requires_grad_(), weight)
        assert not rows_triton.takes(x.double(), weight.double())
        assert not rows_triton.takes(x.half(), weight)
    assert not rows_triton.takes(x, weight)


@needs_triton
def test_the_kernel_compiles_for_devices_that_are_not_there(tmp_path):
    """To machine code; on what fits the shared memory of all of them, and on tensor cores where float32 is not asked for.

    What the interpreter does not show: sums of products in bfloat16, and the rounding to it."""
    found = [json.loads(line) for line in work("compile", TRITON_CACHE_DIR=str(tmp_path)).splitlines()]
    assert len(found) == 8
    assert all(0 < one["shared"] <= 48 * 1024 and one["code"] > 0 for one in found)
    assert all(one["tensor cores"] == one["rounded"] == (one["dtype"] != "fp32") for one in found)


def test_what_is_said_without_triton():
    assert "pip install triton" in work("missing")


def test_the_package_does_not_import_triton():
    code = "import sys, secateur, secateur.runtime.model; assert 'triton' not in sys.modules, 'triton'"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
