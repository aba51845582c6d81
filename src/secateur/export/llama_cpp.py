"""llama.cpp itself, in a process of its own: what does not hold there ends a program without a word."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError

WAIT = 3600  # seconds


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`version`: of llama-cpp-python. `tokens`: of each text, as llama.cpp splits it."""

    version: str
    logits: Float[Tensor, "window token vocab"]
    tokens: tuple[tuple[int, ...], ...]


def installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def run(path: Path, windows: Int[Tensor, "window token"], texts: Sequence[str] = ()) -> Answer:
    """Logits of every token of every window, each from an empty context, and the tokens of texts. Float32 on the CPU.

    The keys and values are kept in float16, llama.cpp's own default. The name of a special token in a text is that token, as it
    is to Hugging Face. Raises `UserError` with llama.cpp's words where it fails.
    """
    with TemporaryDirectory(prefix="secateur-") as directory:
        out = Path(directory) / "answer.npz"
        request = {"path": str(path), "windows": windows.tolist(), "texts": list(texts), "out": str(out)}
        command = [sys.executable, "-m", "secateur.export.llama_cpp_worker"]
        try:
            done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=WAIT)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"llama.cpp was not done with {path.name} after {WAIT} s. Give --no-check, or fewer tokens."
            ) from error
        if done.returncode or not out.is_file():
            words = [line for line in done.stderr.splitlines() if "error" in line.lower() or "assert" in line.lower()]
            said = " ".join((words or done.stderr.splitlines() or ["nothing"])[-3:])
            raise UserError(
                f"llama.cpp does not run the file (exit code {done.returncode}): {said[:600]}. Nothing was published. If there is too "
                f"little memory for the whole model, or llama-cpp-python itself does not work, give --no-check; else please "
                f"report this with the model's config.json."
            )
        with np.load(out) as found:
            logits = torch.from_numpy(found["logits"])
            ends = np.cumsum(found["lengths"]).tolist()
            ids = found["tokens"].tolist()
        starts = [0, *ends[:-1]] if ends else []
        tokens = tuple(tuple(ids[a:b]) for a, b in zip(starts, ends, strict=True))
        return Answer(version=done.stdout.strip(), logits=logits, tokens=tokens)
