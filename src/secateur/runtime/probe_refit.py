"""Probe and refit: what a smaller model's lost channels would have said of a few tokens of each batch corrects the rest of it.

A pruned and refitted MLP reads z, its kept channels, in place of all of them; its output matrix was fitted to calibration text.
For n tokens of the batch, evenly spread, the channels that left are computed as well, from the same input: y = W_D x_D. With
M z + c the best linear map of z to y on the calibration text, and Z = (z - mean) of these tokens,
D = diag(var z + typical(var z) / 10):

    r     = y - (M z + c)                                   what no fixed map of z could say, in this batch
    alpha = (Z D^-1 Z^T + 1 + lam I)^-1 r                    min over dW, b:  ||r - dW Z - b||^2 + lam (||dW D^(1/2)||^2 + b^2)
    W    <- W + alpha^T Z D^-1,   b <- b + sum alpha - alpha^T Z D^-1 mean

which is ridge regression in n equations, at a cost of n (n + 2 K) and not K^3,

and to the probed tokens themselves the rest of r, lam alpha, is added. r is taken against M and not against W,
as W was also fitted to what the layers before have lost, which no probe sees. Ours; the figures that chose the defaults are in
docs/log.md.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.gram import typical

TINY = torch.finfo(torch.float32).tiny
SPREAD = 0.1
"""Of what is typical of the variances: added to each, so that a channel that never varied is no sure sign."""


@dataclass(frozen=True, kw_only=True)
class ProbeRefit:
    """How a batch corrects the smaller model.

    `tokens`: the fraction of the batch's tokens that are probed; `least`: how many there are at least, as long as they take at
    most `share` of the work that is saved; a batch of under `fewest` tokens is not probed. `strength`: lam for each
    probed token, how little they count against the calibration text.
    """

    name: ClassVar = "probe-refit"
    tokens: float = 0.025
    least: int = 64
    fewest: int = 192
    share: float = 0.65
    strength: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.tokens <= 1:
            raise UserError(f"the probe's fraction of tokens is {self.tokens}. Allowed: above 0, at most 1.")
        if self.least < 1 or self.fewest < 1 or self.share < 0:
            raise UserError(
                f"least={self.least}, fewest={self.fewest}, share={self.share}. Allowed: from 1, from 1, and from 0."
            )
        if not self.strength > 0:
            raise UserError(f"strength is {self.strength}. Allowed: above 0 (16 counts little on each token).")

    def count(self, tokens: int, gone: float) -> int:
        """Tokens that are probed of a batch's. `gone`: the fraction of the MLP's channels that left, which saves that of its work,
        and costs as much again for each probed token; two products with a matrix of the kept channels cost the rest."""
        if tokens < self.fewest:
            return 0
        most = self.share * gone * tokens / (gone + (1 - gone) * 2 / 3)
        return min(max(self.least, round(self.tokens * tokens)), int(most))


class Known(NamedTuple):
    """What is known of one pruned MLP from calibration text, float32 but for `weight`, which has the model's type."""

    mean: Float[Tensor, " kept"]
    """Of z."""
    scale: Float[Tensor, " kept"]
    """The diagonal of D^-1."""
    weight: Float[Tensor, "kept out"]
    """M, transposed."""
    bias: Float[Tensor, " out"]
    """c, for z as it is."""


class Correction(NamedTuple):
    """What is added to the output: (z keys^T) values + shift."""

    keys: Float[Tensor, "probed kept"]
    values: Float[Tensor, "probed out"]
    shift: Float[Tensor, " out"]
    exact: Float[Tensor, "probed out"]
    """What the probed tokens' outputs still lack of r."""


def precision(variance: Float[Tensor, " kept"]) -> Float[Tensor, " kept"]:
    """The diagonal of D^-1."""
    return 1 / (variance + SPREAD * typical(variance)).clamp_min(TINY)


def spread(valid: Bool[Tensor, "batch token"] | None, tokens: int, count: int, device: torch.device) -> Int[Tensor, " probed"]:
    """Positions of `count` tokens in the flattened batch, evenly spread over the `tokens` that are not padding; repeated where these
    are fewer."""
    places = ((torch.arange(count, device=device) + 0.5) / count * tokens).long()
    return places if valid is None else torch.searchsorted(valid.flatten().long().cumsum(0), places + 1)


def correct(
    z: Float[Tensor, "probed kept"],
    y: Float[Tensor, "probed out"],
    known: Known,
    strength: float,
    valid: Bool[Tensor, " probed"] | None,
) -> Correction:
    """The formulas above, in float32. Tokens that are not `valid` count for nothing."""
    lam = strength * len(z)
    there = torch.ones(len(z), device=z.device) if valid is None else valid.float()
    lacks = (y - torch.addmm(known.bias.to(z.dtype), z, known.weight)).float()
    centred = z.float() - known.mean
    if valid is not None:
        lacks, centred = (x.where(valid[:, None], 0) for x in (lacks, centred))
    keys = centred * known.scale
    gram = keys @ centred.mT + torch.outer(there, there)
    gram.diagonal().add_(lam)
    factor, _ = torch.linalg.cholesky_ex(gram)
    values = torch.cholesky_inverse(factor) @ lacks  # two thirds of the time of a triangular solve
    shift = (there - torch.mv(keys, known.mean)) @ values
    keys, values, shift, exact = (x.to(z.dtype) for x in (keys, values, shift, lam * values))
    return Correction(keys=keys, values=values, shift=shift, exact=exact)
