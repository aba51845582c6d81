"""The process that runs llama.cpp: one request as JSON on stdin, the answer in the file that it names. Needs no torch."""

import json
import sys
from typing import Any

import numpy as np


def _serve() -> None:
    import llama_cpp.llama_cpp as c  # pyright: ignore[reportMissingImports]
    from llama_cpp import __version__  # pyright: ignore[reportMissingImports]

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
