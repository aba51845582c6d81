"""Which tokens of which samples are probed."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.runtime.probe import Probe


class Part(NamedTuple):
    """The probe's samples and their positions, both ascending; the same positions in every sample."""

    samples: Int[Tensor, " sample"]
    tokens: Int[Tensor, " token"]

    def of(self, x: Tensor) -> Tensor:
        """[batch or 1, token, ...] -> the probe's part of it."""
        rows = x.index_select(0, self.samples) if x.shape[0] > 1 else x
        return rows.index_select(1, self.tokens)


def counts(batch: int, length: int, probe: Probe) -> tuple[int, int]:
    """(samples, positions) of a probe: the fractions, rounded up, at least two positions, and tokens between `least` and `most`.

    Where that asks for more, positions are added before samples; for fewer, positions are left out.
    """
    samples = math.ceil(batch * probe.samples)
    most = max(probe.least, probe.most * batch * length)
    tokens = min(math.ceil(length * probe.tokens), math.ceil(most / samples))
    tokens = min(length, max(tokens, 2, math.ceil(probe.least / samples)))
    return min(batch, max(samples, math.ceil(probe.least / tokens))), tokens


def select(stream: Float[Tensor, "batch token hidden"], valid: Bool[Tensor, "batch token"] | None, probe: Probe) -> Part:
    """By the norm of each token's state (`valid`: False where it is padding, which comes last)."""
    batch, length = stream.shape[:2]
    num_samples, num_tokens = counts(batch, length, probe)
    if probe.rank == "even":
        return Part(_even(batch, num_samples, stream.device), _even(length, num_tokens, stream.device))
    energy = torch.linalg.vector_norm(stream, dim=-1, dtype=torch.promote_types(stream.dtype, torch.float32))
    if valid is not None:
        energy = energy.where(valid, 0)
    if probe.order == "tokens":
        tokens = _largest(torch.linalg.vector_norm(energy, dim=0), num_tokens)
        tokens = _with_first(tokens, probe)
        samples = _largest(torch.linalg.vector_norm(energy.index_select(1, tokens), dim=1), num_samples)
    else:
        samples = _largest(torch.linalg.vector_norm(energy, dim=1), num_samples)
        tokens = _largest(torch.linalg.vector_norm(energy.index_select(0, samples), dim=0), num_tokens)
        tokens = _with_first(tokens, probe)
    return Part(samples, tokens)


def _largest(score: Float[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    if count == len(score):
        return torch.arange(count, device=score.device)
    return score.topk(count).indices.sort().values


def _with_first(tokens: Int[Tensor, " token"], probe: Probe) -> Int[Tensor, " token"]:
    if len(tokens) <= probe.first:
        tokens[0] = 0
    return tokens


def _even(size: int, count: int, device: torch.device) -> Int[Tensor, " count"]:
    return torch.linspace(0, size - 1, count, device=device).round().long()
