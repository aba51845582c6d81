"""Token ids to blocks of equal length: a seeded draw to calibrate on, consecutive windows to evaluate on."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.calibration.tokens import Tokens
from secateur.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of tokens of one text, in the text's order, no token of it in two blocks."""

    ids: Int[Tensor, "block token"]
    text: str
    """Name of the text they come from."""
    protocol: str
    """How they were made: number, length, text, how it was joined, BOS."""
    fingerprint: str
    """SHA-256 over the shape and the ids: equal for equal blocks, wherever they came from."""

    @property
    def seq_len(self) -> int:
        return self.ids.shape[1]

    @property
    def num_tokens(self) -> int:
        return self.ids.numel()


def draw_blocks(tokens: Tokens, *, samples: int, seq_len: int, seed: int) -> Blocks:
    """Draw `samples` of the text's consecutive windows at random, without replacement.

    The same seed gives the same blocks, and a larger draw contains every smaller one. Blocks stand in the text's order.

    Raises `UserError` if the text has too few tokens, `samples` is below 1 or `seq_len` below 2.
    """
    if samples < 1:
        raise UserError(f"--samples is {samples}. Give at least 1.")
    own = _own_length(tokens, seq_len)
    cut = _cut(tokens, own)
    if len(cut) < samples:
        needed, has = samples * own, len(tokens.ids)
        longest = has // samples + seq_len - own
        options = [f"fewer --samples (at most {len(cut):,})"] if len(cut) else []
        options += [f"a smaller --seq-len (at most {longest:,})"] if longest >= 2 else []
        advice = f"{', '.join(options)}, or " if options else ""
        raise UserError(
            f"the calibration text {tokens.name!r} is too short: it has {has:,} tokens, and {samples:,} samples of "
            f"{seq_len:,} tokens need {needed:,}. Give {advice}a longer text."
        )
    order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))
    chosen = order[:samples].sort().values
    how = f"{samples:,} of {len(cut):,} non-overlapping windows of {seq_len:,} tokens, drawn with seed {seed}"
    return _blocks(tokens, cut[chosen], how)


def windows(tokens: Tokens, *, seq_len: int, max_tokens: int | None = None) -> Blocks:
    """Cut the text into consecutive windows from its start, at most `max_tokens` tokens in all; the tail is dropped.

    Raises `UserError` if there is not one whole window, or `seq_len` is below 2.
    """
    own = _own_length(tokens, seq_len)
    if max_tokens is not None and max_tokens < seq_len:
        raise UserError(
            f"--max-tokens {max_tokens:,} is less than one window of --seq-len {seq_len:,}. Give at least {seq_len:,}, "
            f"or a smaller --seq-len."
        )
    whole = _cut(tokens, own)
    if not len(whole):
        has = len(tokens.ids)
        option = f"a smaller --seq-len (at most {has + seq_len - own:,}), or " if has >= own - seq_len + 2 else ""
        raise UserError(
            f"the evaluation text {tokens.name!r} is too short: it has {has:,} tokens, and one window of {seq_len:,} tokens "
            f"needs {own:,}. Give {option}a longer text."
        )
    cut = whole if max_tokens is None else whole[: max_tokens // seq_len]
    rest = len(tokens.ids) - len(cut) * own
    ended = (
        "the rest of the text is not used" if len(cut) < len(whole) or not tokens.complete else f"a tail of {rest:,} dropped"
    )
    how = f"{len(cut):,} consecutive non-overlapping windows of {seq_len:,} tokens ({len(cut) * seq_len:,} in all; {ended})"
    return _blocks(tokens, cut, how)


def _own_length(tokens: Tokens, seq_len: int) -> int:
    """Tokens of the text itself in one window."""
    if seq_len < 2:
        raise UserError(f"--seq-len is {seq_len}. Give at least 2: a window must hold a token and the one that follows it.")
    return seq_len - (tokens.bos_id is not None)


def _cut(tokens: Tokens, own: int) -> Int[Tensor, "window own"]:
    count = len(tokens.ids) // own
    return tokens.ids[: count * own].view(count, own)


def _blocks(tokens: Tokens, cut: Int[Tensor, "window own"], how: str) -> Blocks:
    if tokens.bos_id is not None:
        cut = torch.cat([torch.full_like(cut[:, :1], tokens.bos_id), cut], dim=1)
    ids = cut.contiguous()
    digest = hashlib.sha256(f"{tuple(ids.shape)}".encode())
    digest.update(ids.to(torch.int64).numpy().astype("<i8").tobytes())
    protocol = f"{how}, of {tokens.name}; text {tokens.joined}, tokenised once; {tokens.bos}"
    return Blocks(ids=ids, text=tokens.name, protocol=protocol, fingerprint=digest.hexdigest())
