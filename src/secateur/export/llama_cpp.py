"""llama.cpp itself, in a process of its own: what does not hold there ends a program without a word.

`python -m secateur.export.llama_cpp` reads one request as JSON on stdin and answers in the file that it names.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
        command = [sys.executable, "-m", "secateur.export.llama_cpp"]
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
                f"llama.cpp cannot run the file (exit code {done.returncode}): {said[:600]}. Nothing was published. Please report "
                f"this with the model's config.json."
            )
        with np.load(out) as found:
            logits = torch.from_numpy(found["logits"])
            ends = np.cumsum(found["lengths"]).tolist()
            ids = found["tokens"].tolist()
        starts = [0, *ends[:-1]] if ends else []
        tokens = tuple(tuple(ids[a:b]) for a, b in zip(starts, ends, strict=True))
        return Answer(version=done.stdout.strip(), logits=logits, tokens=tokens)


def _serve() -> None:
    import llama_cpp.llama_cpp as c
    from llama_cpp import __version__

    request: dict[str, Any] = json.load(sys.stdin)
    c.llama_backend_init()
    params = c.llama_model_default_params()
    params.n_gpu_layers = 0
    model: Any = c.llama_model_load_from_file(request["path"].encode(), params)
    if not model:
        sys.exit("error: llama.cpp did not load the file")
    vocab: Any = c.llama_model_get_vocab(model)
    tokens = [_tokenised(c, vocab, text) for text in request["texts"]]
    logits = _logits(c, model, c.llama_vocab_n_tokens(vocab), request["windows"])
    flat = np.array([at for one in tokens for at in one], dtype=np.int64)
    np.savez(request["out"], logits=logits, tokens=flat, lengths=np.array([len(one) for one in tokens], dtype=np.int64))
    print(__version__)


def _logits(c: Any, model: Any, vocab_size: int, windows: list[list[int]]) -> np.ndarray:
    length = len(windows[0])
    params = c.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    context = c.llama_init_from_model(model, params)
    if not context:
        sys.exit("error: llama.cpp made no context")
    out = np.empty((len(windows), length, vocab_size), dtype=np.float32)
    batch = c.llama_batch_init(length, 0, 1)
    for number, window in enumerate(windows):
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch.n_tokens = length
        for at, token in enumerate(window):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, True
            batch.seq_id[at][0] = 0
        if code := c.llama_decode(context, batch):
            sys.exit(f"error: llama_decode gave {code}")
        out[number] = np.ctypeslib.as_array(c.llama_get_logits(context), shape=(length, vocab_size))
    return out


def _tokenised(c: Any, vocab: Any, text: str) -> list[int]:
    raw = text.encode()
    room = len(raw) + 16
    ids = (c.llama_token * room)()
    count = c.llama_tokenize(vocab, raw, len(raw), ids, room, True, True)
    if count < 0:
        sys.exit(f"error: llama_tokenize gave {count}")
    return list(ids[:count])


if __name__ == "__main__":
    _serve()
