"""How much memory a walk takes, and how it is made to fit: smaller micro-batches first, then hidden states in a file."""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur import axes
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.plan import parameters
from secateur.settings import spell_bytes

MOST_TOKENS, LEAST_TOKENS = 1024, 64
SHARE = 4  # hidden states may take this part of the free memory before they are spilled unasked


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a walk runs: tokens in a micro-batch, hidden states in a file or not, and the peak that is predicted in bytes."""

    tokens: int
    spill: bool
    peak: int


def fit(
    binding: Binding,
    *,
    shape: tuple[int, int],
    dtype: torch.dtype,
    stored: torch.dtype,
    statistics: int,
    limit: int | None,
    states: int = 1,
) -> Fit:
    """Choose for `shape` = (blocks, tokens). `statistics`: bytes of one layer's. Raises `UserError` if nothing fits in `limit`.

    `states`: copies of the hidden states that are held unless they are spilled; more than one for gradients, which hold a graph too.
    """
    back = states > 1
    hidden = states * shape[0] * shape[1] * binding.sizes["hidden"] * dtype.itemsize
    weights = layer_bytes(binding, dtype) + (0 if dtype == stored else layer_bytes(binding, stored))
    fixed = resident() + weights + statistics
    spill = (
        hidden > free() // SHARE
        if limit is None
        else fixed + hidden + activations(binding, MOST_TOKENS, shape[1], dtype, back) > limit
    )
    fixed += 0 if spill else hidden
    tokens = max(shape[1], MOST_TOKENS)
    while (
        limit is not None
        and fixed + activations(binding, tokens, shape[1], dtype, back) > limit
        and tokens > max(shape[1], LEAST_TOKENS)
    ):
        tokens //= 2
    tokens = max(tokens, shape[1])
    peak = fixed + activations(binding, tokens, shape[1], dtype, back)
    if limit is not None and peak > limit:
        raise UserError(
            f"--max-memory is {spell_bytes(limit)}, and this needs about {spell_bytes(peak)}: {spell_bytes(resident())} for the "
            f"program, {spell_bytes(weights)} for one layer, {spell_bytes(statistics)} for its statistics. Give more, a smaller "
            f"--seq-len, or --compensate none."
        )
    return Fit(tokens=tokens, spill=spill, peak=peak)


def layer_bytes(binding: Binding, dtype: torch.dtype) -> int:
    return parameters(binding.layer.values(), binding.sizes) * dtype.itemsize


def activations(binding: Binding, tokens: int, seq_len: int, dtype: torch.dtype, back: bool = False) -> int:
    """A rough upper bound for one layer's intermediate tensors: every weight's output, twice, and eager attention's scores.

    `back`: half as much again, as measured on the 7B shape (docs/benchmarks.md).
    """
    widths = sum(axes.shape(s, binding.sizes)[1 - min(s.inputs)] for s in binding.layer.values() if len(s.dims) == 2)
    heads = binding.sizes["kv"] * binding.sizes.get("group", 1)
    forward = tokens * (2 * widths + 4 * binding.sizes["hidden"]) * dtype.itemsize + 2 * tokens * heads * seq_len * 4
    return forward * 3 // 2 if back else forward


def peak() -> int:
    """The largest resident set this process has had, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def resident() -> int:
    """The resident set now, in bytes; where the system does not tell, the largest so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak()


def free() -> int:
    """Physical memory that is free now, in bytes; 4 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 4 << 30
