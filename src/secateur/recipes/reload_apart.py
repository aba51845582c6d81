"""A written directory loaded whole by the line that people will load it with: here, or in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import UserError
from secateur.export.load import load, without_bars
from secateur.export.stock import Shape


class Said(NamedTuple):
    """`text`: a prompt and its greedy continuation. `logits`: of all of it, in one pass without a cache."""

    text: Int[Tensor, "1 token"]
    logits: Float[Tensor, "1 token vocab"]


def say(directory: Path, prompt: Int[Tensor, "1 token"], new: int, dtype: torch.dtype, *, own_code: bool) -> Said:
    """Load here, with this package's own classes; `own_code`: with the code that the model brings."""
    with without_bars():
        model = load(directory, dtype=dtype, trust_remote_code=own_code)
    return _said(model, prompt, new)


def loaded_apart(directory: Path, prompt: Int[Tensor, "1 token"], new: int, dtype: torch.dtype, *, shape: Shape) -> Said | None:
    """Load in another process, whose memory is given back, and by transformers alone where that is what the result is for: with the
    modelling file of the directory.

    None where the process was killed, as by a system that is out of memory. Raises `UserError` where it failed."""
    with TemporaryDirectory(prefix="secateur-") as place:
        request = {
            "directory": str(directory), "prompt": prompt[0].tolist(), "new": new, "dtype": str(dtype).removeprefix("torch."),
            "secateur": shape.by_secateur, "trust_remote_code": shape.needs_code, "out": str(Path(place) / "said.safetensors"),
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(place) / "modules")}
        if shape.self_contained:  # code that a model brings may lie on the hub
            environment["HF_HUB_OFFLINE"] = "1"
        command = [sys.executable, "-m", "secateur.recipes.reload_apart"]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
        if done.returncode < 0:
            return None
        if done.returncode or not Path(request["out"]).is_file():
            last = " ".join((done.stderr.strip().splitlines() or ["it said nothing"])[-1].split())[:500]
            line = shape.loading(directory.name)
            raise UserError(
                f"the written checkpoint failed its last check: {line} ended with code {done.returncode}: {last}. "
                f"Nothing was put in the output directory. If there was too little memory, give --max-memory, with which the model is "
                f"not loaded whole; else this is a bug in secateur: please report it with the model's config.json."
            )
        found = load_file(request["out"])
    return Said(text=found["text"], logits=found["logits"])


@torch.no_grad()
def _said(model: Any, prompt: Int[Tensor, "1 token"], new: int) -> Said:
    """Token by token from the model's cache, and the whole text at once."""
    text, given, cache = prompt, prompt, None
    for _ in range(new):
        out = model(given, past_key_values=cache, use_cache=True)
        cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
        text = torch.cat([text, given], -1)
    return Said(text=text, logits=model(text, use_cache=False).logits)


def _serve(asked: str) -> None:
    request = json.loads(asked)
    torch.set_num_threads(request["threads"])
    directory, dtype = Path(request["directory"]), getattr(torch, request["dtype"])
    with without_bars():
        if request["secateur"]:
            model = load(directory, dtype=dtype, trust_remote_code=request["trust_remote_code"])
        else:
            from transformers import AutoModelForCausalLM

            options = {"trust_remote_code": request["trust_remote_code"]}
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **options).eval()
    found = _said(model, torch.tensor([request["prompt"]]), request["new"])
    save_file({"text": found.text.contiguous(), "logits": found.logits.contiguous()}, request["out"])


if __name__ == "__main__":
    _serve(sys.stdin.read())
