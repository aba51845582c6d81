"""Text to token ids, in bounded memory, and the tokenizer of a checkpoint."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.calibration.text import Text
from secateur.errors import UserError
from secateur.families.unequal import own_config
from secateur.reporter import Quiet, Reporter

Tokenizer = Any  # transformers' PreTrainedTokenizerBase
Bos = Literal["auto", "none", "each"]

# One encoding of a whole text costs about 400 bytes a token. Pieces bound that; they overlap to be checked against each other.
PIECE, OVERLAP = 2**16, 2**12  # characters

VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "vocab.bpe", "tiktoken.model",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A tokenised text, with what a reader must know to tokenise it again."""

    ids: Int[Tensor, " token"]
    name: str
    joined: str
    bos: str
    """How the text begins, as a phrase: "<s> at the start of the text"."""
    bos_id: int | None
    """The token that belongs in front of every window; None where windows are cut from `ids` as they are."""
    complete: bool
    """The whole text is in `ids`."""


def tokenise(
    text: Text,
    tokenizer: Tokenizer,
    *,
    bos: Bos = "auto",
    max_tokens: int | None = None,
    reporter: Reporter | None = None,
) -> Tokens:
    """Tokenise a text as one string, or the part of it that gives its first `max_tokens` tokens.

    `bos`: "auto" begins as the tokenizer itself begins one text, "none" adds no special token, "each" leaves it to the windows
    to begin with the tokenizer's BOS. An EOS is never added.

    Raises `UserError` for "each" with a tokenizer that has no BOS, for `max_tokens` below 1, and for an unknown `bos`.
    """
    if bos not in get_args(Bos):
        raise UserError(f"unknown choice of BOS {bos!r}. Allowed: {', '.join(get_args(Bos))}.")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}. Give at least 1, or leave it out to use the whole text.")
    start, phrase = _beginning(tokenizer, bos)
    parts, count, complete = [torch.tensor(start, dtype=torch.long)], len(start), True
    num_pieces = math.ceil(len(text.body) / (PIECE - OVERLAP))
    for ids, done in (reporter or Quiet()).track(_pieces(text.body, tokenizer), f"tokenising {text.name}", num_pieces):
        parts.append(torch.tensor(ids, dtype=torch.long))
        count += len(ids)
        if max_tokens is not None and count >= max_tokens:
            complete = done == len(text.body) and count == max_tokens
            break
    return Tokens(
        ids=torch.cat(parts)[:max_tokens], name=text.name, joined=text.joined, bos=phrase,
        bos_id=tokenizer.bos_token_id if bos == "each" else None, complete=complete,
    )  # fmt: skip


def _beginning(tokenizer: Tokenizer, bos: Bos) -> tuple[list[int], str]:
    """The special tokens put in front of the text, and a phrase that says so."""
    if bos == "each":
        if tokenizer.bos_token_id is None:
            raise UserError(
                "a BOS was asked for at the start of every window, but this tokenizer has none. Choose 'auto' or 'none'."
            )
        return [], f"{tokenizer.bos_token} at the start of every window"
    if bos == "none":
        return [], "no special tokens added"
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    if at == 0:
        return [], "no BOS (the tokenizer adds none)"
    return whole[:at], f"{' '.join(tokenizer.convert_ids_to_tokens(whole[:at]))} at the start of the text"


class _Encoded(NamedTuple):
    """One piece of a text: where it ends, its tokens, and the characters of the text that each token stands for."""

    end: int
    ids: list[int]
    spans: list[tuple[int, int]]

    def within(self, low: int, high: int) -> slice:
        """The tokens that start at the characters from `low` to before `high`."""
        return slice(bisect_left(self.spans, (low,)), bisect_left(self.spans, (high,)))


def _pieces(body: str, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Yield the tokens of `body` in order, a piece at a time, with the number of characters done.

    Neighbouring pieces overlap, and are joined only where both give the same tokens all through the middle half of the
    overlap: there, neither where the left one ends nor where the right one begins makes a difference. Where they disagree
    the left piece grows, in the end to the whole text.
    """
    if not tokenizer.is_fast:  # says nothing about which characters a token stands for
        yield tokenizer(body, add_special_tokens=False, verbose=False)["input_ids"], len(body)
        return
    begin, first, end = 0, 0, PIECE
    left = _encode(body, tokenizer, begin, end)
    while left.end < len(body):
        following = left.end - OVERLAP
        right = _encode(body, tokenizer, following, following + PIECE)
        low, high = following + OVERLAP // 4, left.end - OVERLAP // 4
        ours, theirs = left.within(low, high), right.within(low, high)
        agree = left.ids[ours] == right.ids[theirs] and left.spans[ours] == right.spans[theirs]
        if agree and ours.start < ours.stop:
            yield left.ids[first : ours.start], low
            begin, first, left = following, theirs.start, right
        else:
            left = _encode(body, tokenizer, begin, begin + 2 * (left.end - begin))
    yield left.ids[first:], len(body)


def _encode(body: str, tokenizer: Tokenizer, begin: int, end: int) -> _Encoded:
    end = min(end, len(body))
    found = tokenizer(
        body[begin:end], add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    spans = [(begin + start, begin + stop) for start, stop in found["offset_mapping"]]
    return _Encoded(end, found["input_ids"], spans)


def check_vocabulary(ids: Int[Tensor, "..."], vocab_size: int) -> None:
    """Raise `UserError` if a token id has no row in an embedding of `vocab_size` rows."""
    largest = int(ids.max()) if ids.numel() else -1
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer gives token id {largest:,}, but the model's embedding has only {vocab_size:,} rows: the tokenizer "
            f"does not belong to this model, or tokens were added and the embedding was not resized. Put the model's own "
            f"tokenizer files into its directory."
        )


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory, without network.

    Raises `UserError` where there is none, or none that can be read; code beside it runs only with `trust_remote_code`.
    """
    from transformers import AutoTokenizer

    path = Path(path)
    present = [name for name in (*VOCABULARIES, "tokenizer_config.json") if (path / name).is_file()]
    # Some tokenizer classes make an empty vocabulary where they find no file; code of the model's own may use other files.
    if not set(present) & set(VOCABULARIES) and not trust_remote_code:
        raise UserError(
            f"no tokenizer in {str(path)!r}: looked for {', '.join(VOCABULARIES)}. Copy the tokenizer files of the "
            f"base model there."
        )
    try:
        own = own_config(path)  # of unequal layers: the stock type is what decides between kinds of tokenizers
        config = {} if own is None else {"config": own.stock()}
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code, local_files_only=True, **config)
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = " ".join(str(error).split())[:300]
        hint = (
            " It wants to run its own code: allow that with --trust-remote-code." if "trust_remote_code" in str(error) else ""
        )
        raise UserError(
            f"the tokenizer in {str(path)!r} cannot be loaded ({type(error).__name__}: {reason}).{hint} Files found: "
            f"{', '.join(present) or 'none'}. Copy the tokenizer files of the base model there again."
        ) from error
