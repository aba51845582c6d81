"""Perplexity of a model that is never in memory whole: one forward walk over all windows, then the head in pieces."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from secateur.streaming.hidden import HiddenStates
from secateur.streaming.walk import Walk

Track = Callable[[Iterable[int], int], Iterator[int]]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean negative log-likelihood in nats. Each window predicts all its tokens but the first."""

    mean: float
    """Mean negative log-likelihood of a predicted token."""
    stderr: float
    """Standard error of `mean` over windows; NaN for one window."""
    predicted: int
    windows: Float[Tensor, " window"]
    """Mean negative log-likelihood of each window."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean) if self.mean < 700 else math.inf


@torch.no_grad()
def measure(walk: Walk, ids: Int[Tensor, "window token"], *, spill: bool = False, track: Track | None = None) -> Perplexity:
    """Walk the windows through the model and read the loss off the head; logits and sums in float32 and float64."""
    shape: Any = (*ids.shape, walk.binding.sizes["hidden"])
    with (
        TemporaryDirectory(prefix="secateur-") as directory,
        HiddenStates(shape, walk.dtype, directory=Path(directory) if spill else None, spill=spill) as hidden,
    ):
        walk.start(ids, hidden)
        layers = walk.layers(hidden)
        for layer in track(layers, walk.binding.num_layers) if track else layers:
            hidden.forget(layer)
        total = torch.zeros(len(ids), dtype=torch.float64)
        for first, position, logits in walk.logits(hidden):
            targets = ids[first : first + len(logits), position + 1 : position + 1 + logits.shape[1]].to(logits.device)
            scored = logits[:, : targets.shape[1]].float()  # nothing follows a window's last token
            loss = F.cross_entropy(scored.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
            total[first : first + len(logits)] += loss.double().sum(1).cpu()
    return _summary(total, ids)


@torch.no_grad()
def measure_whole(model: Any, ids: Int[Tensor, "window token"], *, batch: int, track: Track | None = None) -> Perplexity:
    """The same of a model in memory, called with `batch` windows at a time."""
    total = torch.zeros(len(ids), dtype=torch.float64)
    starts = range(0, len(ids), batch)
    for start in track(starts, len(starts)) if track else starts:
        windows = ids[start : start + batch].to(model.device)
        logits = model(windows, use_cache=False).logits
        for number, (scored, targets) in enumerate(zip(logits, windows, strict=True), start=start):
            loss = F.cross_entropy(scored[:-1].float(), targets[1:], reduction="none")
            total[number] = loss.double().sum().cpu()
    return _summary(total, ids)


def _summary(total: Float[Tensor, " window"], ids: Int[Tensor, "window token"]) -> Perplexity:
    each = total / (ids.shape[1] - 1)
    spread = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
    return Perplexity(mean=float(each.mean()), stderr=spread, predicted=len(ids) * (ids.shape[1] - 1), windows=each)
