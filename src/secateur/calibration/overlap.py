"""How much of the text that is evaluated on was calibrated on: shared runs of tokens.

A model calibrated on the text that it is measured on looks better than it is. Runs of 32 tokens (*shingles*) tell a copy from
what any two texts of one kind have in common.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.errors import UserError

SHINGLE = 32  # tokens; a power of two
ALLOWED = 0.05  # the fraction of shared shingles above which a run refuses; docs/calibration.md has what texts share
CHUNK = 2**18  # tokens of the calibration text that are hashed at a time
SIEVE = 22  # bits
SNIPPET = 160  # characters of the example

# Any odd numbers with their bits well spread. The spelling is of signed 64-bit integers, in which torch multiplies modulo 2^64.
MIX, BASE = -7046029254386353131, 6364136223846793005


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Distinct shingles of the evaluated tokens, and how many of them the calibration has too."""

    shingles: int
    """Distinct ones of the evaluated tokens."""
    in_text: int
    """Of them, those that occur anywhere in the calibration text."""
    in_blocks: int
    """Of them, those that occur within a block that was drawn from it. None do in blocks shorter than a shingle."""
    example: int | None
    """Where the first shared shingle begins, counted in evaluated tokens; None where none is shared."""

    @property
    def fraction(self) -> float:
        """Of the evaluated shingles, those in the calibration text; 0 where the evaluated text is shorter than a shingle."""
        return self.in_text / self.shingles if self.shingles else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "shingle_tokens": SHINGLE, "shingles": self.shingles, "in_calibration_text_ratio": self.fraction,
            "in_calibration_blocks_ratio": self.in_blocks / self.shingles if self.shingles else 0.0, "allowed_ratio": ALLOWED,
        }  # fmt: skip


def overlap(evaluated: Int[Tensor, " token"], text: Int[Tensor, " calibration"], blocks: Int[Tensor, "block own"]) -> Overlap:
    """Shingles of the evaluated tokens in the calibration text, and in the blocks drawn from it.

    Shingles are compared by 64-bit hashes: of 10^7 times 10^5 pairs, one is wrong with a probability of about 10^-7. Memory is
    that of a few copies of `CHUNK` and of the evaluated tokens, as int64.
    """
    hashes = shingle_hashes(evaluated)
    distinct = hashes.unique()
    in_text = _present(distinct, (shingle_hashes(part) for part in _chunks(text)))
    in_blocks = _present(distinct, (shingle_hashes(part).flatten() for part in blocks.split(max(1, CHUNK // blocks.shape[1]))))
    shared = torch.isin(hashes, distinct[in_text]).nonzero()
    return Overlap(
        shingles=len(distinct), in_text=int(in_text.sum()), in_blocks=int(in_blocks.sum()),
        example=int(shared[0]) if len(shared) else None,
    )  # fmt: skip


def check_overlap(
    found: Overlap, evaluated: Int[Tensor, " token"], tokenizer: Any, *, calibration: str, evaluation: str,
    option: str = "--eval",
) -> None:  # fmt: skip
    """Raise `UserError` if more than `ALLOWED` of the evaluated shingles are in the calibration text. The names are the texts'.

    `option`: what the evaluation text was given by.
    """
    if found.fraction <= ALLOWED:
        return
    assert found.example is not None
    shown = " ".join(tokenizer.decode(evaluated[found.example : found.example + SHINGLE]).split())
    raise UserError(
        f"the text to evaluate on ({evaluation}) overlaps with the calibration text ({calibration}): {found.fraction:.1%} of its "
        f"runs of {SHINGLE} tokens occur there too, the first at token {found.example:,}: {shown[:SNIPPET]!r}. The perplexity "
        f"would be of text that the model was fitted to. At most {ALLOWED:.0%} is allowed: give {option} a text that "
        f"--calibration does not hold, or leave {option} out (a part of the calibration text is then held out), or allow it with "
        f"--allow-overlap, and the result says so."
    )


def shingle_hashes(ids: Int[Tensor, "*batch token"]) -> Int[Tensor, "*batch shingle"]:
    """A hash of every `SHINGLE` consecutive tokens of the last dimension; equal runs have equal hashes.

    A polynomial in `BASE` modulo 2^64 over the mixed ids, doubled in length until it spans a shingle: H_2n[i] = H_n[i] BASE^n +
    H_n[i + n].
    """
    hashed = ids.long() * MIX
    hashed = (hashed ^ (hashed >> 29)) * BASE
    hashed = hashed ^ (hashed >> 32)
    length, power = 1, BASE
    while length < SHINGLE:
        if hashed.shape[-1] <= length:
            return hashed[..., :0]
        hashed = hashed[..., :-length] * power + hashed[..., length:]
        length, power = 2 * length, _wrapped(power * power)
    return hashed


def _chunks(ids: Int[Tensor, " token"]) -> Iterator[Int[Tensor, " part"]]:
    """Parts of a text that share all tokens but one of a shingle with the next, so that none falls between two."""
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK + SHINGLE - 1]


def _present(distinct: Int[Tensor, " shingle"], seen: Iterator[Int[Tensor, " other"]]) -> Bool[Tensor, " shingle"]:
    """Which of the sorted, distinct hashes are among those seen."""
    found = torch.zeros(len(distinct), dtype=torch.bool)
    if not len(distinct):
        return found
    near = torch.zeros(2**SIEVE, dtype=torch.bool)  # nearly all that is seen is sieved out here, at a tenth of a search's cost
    near[_sieved(distinct)] = True
    for hashes in seen:
        hashes = hashes[near[_sieved(hashes)]]
        at = torch.searchsorted(distinct, hashes).clamp_(max=len(distinct) - 1)
        found[at[distinct[at] == hashes]] = True
    return found


def _sieved(hashes: Int[Tensor, " shingle"]) -> Int[Tensor, " shingle"]:
    """The hashes' highest bits, as a number from 0."""
    return (hashes >> (64 - SIEVE)) + 2 ** (SIEVE - 1)


def _wrapped(value: int) -> int:
    """A Python integer as the signed 64-bit one that is equal to it modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63
