"""Loading what was written in a process that shares nothing with the test's, and has no Secateur."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GREEDY: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
WORKER = Path(__file__).with_name("elsewhere_worker.py")


class Written(NamedTuple):
    """A directory, and the line of Python that it is said to load by."""

    out: Path
    load: str


def fresh(script: str | Path, *arguments: str, modules: Path, code: bool = False) -> str:
    """What another process says."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-c", str(script)] if code else ["-I", str(script)]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def answers(written: Sequence[Written], ids: Tensor, prompt: Tensor, tmp_path: Path) -> list[dict[str, Tensor]]:
    """Of each: `logits` of the ids, `greedy` and `uncached` continuations of the prompt; and again, once saved and loaded again."""
    save_file({"ids": ids, "prompt": prompt}, tmp_path / "given.safetensors")
    found = [tmp_path / f"found{number}.safetensors" for number in range(len(written))]
    asked = [
        {"out": str(one.out), "load": one.load, "again": str(tmp_path / f"again{number}"), "found": str(found[number])}
        for number, one in enumerate(written)
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    said = fresh(WORKER, str(tmp_path / "given.safetensors"), str(tmp_path / "asked.json"), modules=tmp_path / "modules")
    assert said.strip().endswith("done")
    return [load_file(path) for path in found]


@torch.no_grad()
def computes_as(found: dict[str, Tensor], oracle: Any, ids: Tensor, prompt: Tensor) -> bool:
    """Equal logits to 1e-5 of the largest, the same tokens with and without a cache, and all of it again after saving."""
    logits, greedy = oracle(ids).logits, oracle.generate(prompt, **GREEDY)
    return (
        near(found["logits"], logits)
        and torch.equal(found["greedy"], greedy)
        and torch.equal(found["uncached"], greedy)
        and all(torch.equal(found[f"again {name}"], found[name]) for name in ("logits", "greedy"))
    )


def near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1))
