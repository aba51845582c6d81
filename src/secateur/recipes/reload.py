"""The last check before a result appears: what its own loader makes of the directory says what the masked original says.

The check of each layer, `surgery.verify`, knows the weights. This one also knows the configuration, the keys, the ties between
weights, the index, the modelling file and the cache: it begins with nothing but the directory.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.export.load import load, without_bars
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.memory import resident
from secateur.streaming.walk import Walk
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import Verifier

PROMPT, NEW = 32, 32  # tokens
SMALL = 64 << 20  # bytes that a whole model may always take: they are little beside the program itself
FULL, HALF = 1e-4, 0.1
"""Largest error of the logits, relative to their norm: in float32 or wider, and in the types of half the bits, which are compared
where the model is too large to be loaded whole. Other configurations of the same weights are off by more than either."""
WHOLE, STREAMED = "loaded whole by its own loader", "read back layer by layer, as its own configuration says"


@dataclass(frozen=True, kw_only=True)
class Reloaded:
    """`error`: largest difference of the logits of `tokens` tokens, root mean square over the vocabulary, relative. `greedy`: tokens
    that both would say next, one after the other, the same; 0 where the model was not loaded whole."""

    how: str
    tokens: int
    error: float
    greedy: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_reloaded(
    rebuild: Rebuild, directory: Path, ids: Int[Tensor, " token"], *, peak: int, trust_remote_code: bool
) -> Reloaded:
    """Raises `UserError` where the directory says something else than the masked original.

    `ids`: text to go on from. `peak`: bytes that the job said it would take, within which the model is loaded whole or else not.
    """
    written = Checkpoint.open(directory, trust_remote_code=trust_remote_code)
    most = min(_positions(written), PROMPT + NEW)
    prompt = ids[None, : max(1, min(PROMPT, most // 2))]
    expect = Verifier(rebuild, prompt).dtype
    room = max(peak - resident(), SMALL)
    if expect.itemsize >= 4 and written.num_parameters * expect.itemsize + written.num_bytes <= room:
        how, limit = WHOLE, FULL
        with without_bars():
            model = load(directory, dtype=expect, trust_remote_code=trust_remote_code)
        text = _continued(model, prompt, most - prompt.shape[1])
        with torch.no_grad():
            found = model(text, use_cache=False).logits
        del model
    else:
        how, limit, text = STREAMED, FULL if expect.itemsize >= 4 else HALF, prompt
        found = _streamed(written, prompt, expect)
    exact = _masked(rebuild, written, text)
    error = float(((found - exact).double().norm(dim=-1) / exact.double().norm(dim=-1).clamp_min(1e-300)).max())
    if not error <= limit:
        raise _refusal(how, f"its logits are off by {error:.1e}, relative; at most {limit:.0e} is allowed")
    said = text[0, prompt.shape[1] :]
    _check_greedy(said, exact[0, prompt.shape[1] - 1 : -1], how)
    return Reloaded(how=how, tokens=text.shape[1], error=error, greedy=len(said))


def _check_greedy(said: Int[Tensor, " token"], exact: Float[Tensor, "token_or_none vocab"], how: str) -> None:
    """The original says the same tokens; of two that are as likely, within the error that is allowed, either will do."""
    if not len(said):
        return
    behind = exact.max(-1).values - exact.gather(-1, said[:, None])[:, 0]
    wrong = (behind > FULL * exact.norm(dim=-1)).nonzero().flatten()
    if len(wrong):
        raise _refusal(how, f"token {int(wrong[0]) + 1} of a greedy continuation is another one")


@torch.no_grad()
def _continued(model: Any, prompt: Int[Tensor, "1 token"], count: int) -> Int[Tensor, "1 longer"]:
    """The prompt and its greedy continuation, token by token from the model's cache."""
    text, given, cache = prompt, prompt, None
    for _ in range(count):
        out = model(given, past_key_values=cache, use_cache=True)
        cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
        text = torch.cat([text, given], -1)
    return text


def _masked(rebuild: Rebuild, written: Checkpoint, ids: Int[Tensor, "1 token"]) -> Float[Tensor, "1 token vocab"]:
    verifier, binding = Verifier(rebuild, ids), written.binding
    for number, layer in enumerate(rebuild.plan.remaining):
        verifier.check(layer, {name: written.read(binding.layer_name(number, name)) for name in rebuild.target.layer})
    return verifier.logits()


def _streamed(written: Checkpoint, ids: Int[Tensor, "1 token"], dtype: torch.dtype) -> Float[Tensor, "1 token vocab"]:
    walk = Walk.over(written, device=torch.device("cpu"), dtype=dtype)
    hidden = HiddenStates((1, ids.shape[1], walk.binding.sizes["hidden"]), dtype)
    walk.start(ids, hidden)
    for layer in walk.layers(hidden):
        hidden.forget(layer)
    return torch.cat([logits for _, _, logits in walk.logits(hidden)], 1)


def _positions(written: Checkpoint) -> int:
    known = getattr(written.binding.config, "max_position_embeddings", None)
    return known if isinstance(known, int) else PROMPT + NEW


def _refusal(how: str, what: str) -> UserError:
    return UserError(
        f"the written checkpoint failed its last check: {how}, {what}. Nothing was put in the output directory. The disk or the "
        f"memory may be failing; if a second run says the same, this is a bug in secateur: please report it with the model's "
        f"config.json."
    )
