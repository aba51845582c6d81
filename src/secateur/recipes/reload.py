"""The last check before a result appears: what its own loader makes of the directory says what the masked original says.

The check of each layer, `surgery.verify`, knows the weights. This one also knows the configuration, the keys, the ties between
weights, the index and the cache.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.export.stock import Shape
from secateur.families import modeling_secateur
from secateur.recipes.reload_apart import Said, loaded_apart, say
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.memory import free, resident
from secateur.streaming.walk import Walk
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import FULL_PRECISION_LAYER, Verifier

PROMPT, NEW = 32, 32  # tokens
SMALL = 64 << 20  # bytes that a whole model may always take here: they are little beside the program itself
PROGRAM = 1 << 30  # bytes that a process takes beside a model, at most
FULL, HALF = 1e-4, 0.3
"""Largest error of the logits of one token, root mean square, as a fraction of their spread: in float32 or wider, and in the types of
half the bits. Those round on their way through many layers, and a false alarm would cost a whole job: only what is grossly wrong is
found there."""
HERE, APART = "loaded whole by its own loader", "loaded whole by its own loader, in a process of its own"
STREAMED = "read back layer by layer, as its own configuration says, for want of memory to load it whole"
SKIPPED = "not read back as a whole, because --max-memory has no room for the head"


@dataclass(frozen=True, kw_only=True)
class Reloaded:
    """`error`: see `FULL`; the largest of `tokens` tokens. `greedy`: tokens that both would say next, one after the other, the same;
    0 where the model was not loaded whole, or is computed in half the bits."""

    how: str
    tokens: int
    error: float
    greedy: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_reloaded(
    rebuild: Rebuild, directory: Path, ids: Int[Tensor, " token"], *, shape: Shape, peak: int, limit: int | None
) -> Reloaded:
    """Raises `UserError` where the directory says something else than the masked original.

    `ids`: text to go on from. `peak`: bytes that the job said it would take, `limit`: those that it may take. Within these the model
    is loaded here; beyond, in another process where there is no limit and enough is free.
    """
    written = Checkpoint.open(directory, trust_remote_code=not shape.self_contained)
    if not shape.stock and shape.self_contained:
        _check_code(directory)
    room = (max(peak, resident() + SMALL) if limit is None else limit) - resident()
    head = _head_bytes(written)
    dtype = _dtype(rebuild, head, room)
    if limit is not None and 2 * head > room:
        return Reloaded(how=SKIPPED, tokens=0, error=0.0, greedy=0)
    most = min(_positions(written), PROMPT + NEW)
    prompt = ids[None, : max(1, min(PROMPT, most // 2))]
    new = most - prompt.shape[1]
    need = written.num_parameters * dtype.itemsize + written.num_bytes
    how, found = STREAMED, None
    if need <= room:
        how, found = HERE, say(directory, prompt, new, dtype, own_code=not shape.self_contained)
    elif limit is None and need * 3 // 2 + PROGRAM <= free():
        how, found = APART, loaded_apart(directory, prompt, new, dtype, shape=shape)
    if found is None:
        how, found = STREAMED, Said(text=prompt, logits=_streamed(written, prompt, dtype))
    return _compared(how, found, _masked(rebuild, written, found.text, dtype), prompt.shape[1], dtype)


def _compared(how: str, found: Said, exact: Float[Tensor, "1 token vocab"], given: int, dtype: torch.dtype) -> Reloaded:
    full = dtype.itemsize >= 4
    limit = FULL if full else HALF
    spread = (exact.double() - exact.double().mean(-1, keepdim=True)).square().mean(-1).sqrt()
    error = float(((found.logits.double() - exact.double()).square().mean(-1).sqrt() / spread.clamp_min(1e-30)).max())
    if not error <= limit:
        raise _refusal(how, f"its logits are off by {error:.1e} of their spread; at most {limit:.0e} is allowed")
    said = found.text[0, given:]
    if len(said) and full:
        _check_greedy(said, exact[0, given - 1 : -1], how)
    return Reloaded(how=how, tokens=found.text.shape[1], error=error, greedy=len(said) if full else 0)


def _check_greedy(said: Int[Tensor, " token"], exact: Float[Tensor, "token vocab"], how: str) -> None:
    """The original says the same tokens; of two that are as likely, within the error that is allowed, either will do."""
    behind = exact.max(-1).values - exact.gather(-1, said[:, None])[:, 0]
    wrong = (behind > FULL * exact.norm(dim=-1)).nonzero().flatten()
    if len(wrong):
        raise _refusal(how, f"token {int(wrong[0]) + 1} of a greedy continuation is another one")


def _check_code(directory: Path) -> None:
    """The modelling file is this package's, which loads the model here and was tested to be what others run."""
    ours = Path(modeling_secateur.__file__)
    if (directory / ours.name).read_bytes() != ours.read_bytes():
        raise _refusal("read back", f"{ours.name} is not what was written")


def _dtype(rebuild: Rebuild, head: int, room: int) -> torch.dtype:
    """Of the check of each layer, unless the head, of so many bytes, is too large for it."""
    wide = Verifier.dtype_of(rebuild)
    stored = rebuild.source.dtype(rebuild.source.binding.embedding)
    large = head // stored.itemsize * wide.itemsize > max(FULL_PRECISION_LAYER, room - head)
    return stored if large else wide


def _head_bytes(written: Checkpoint) -> int:
    binding = written.binding
    names = [binding.embedding] if binding.tied else [name for name in binding.outer if binding.is_head(name)]
    return sum(torch.Size(written.entry(name).shape).numel() * written.dtype(name).itemsize for name in names)


def _masked(rebuild: Rebuild, written: Checkpoint, ids: Tensor, dtype: torch.dtype) -> Float[Tensor, "1 token vocab"]:
    verifier, binding = Verifier(rebuild, ids, dtype), written.binding
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
