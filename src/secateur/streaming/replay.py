"""The loss of one model after another that differ in some layers' weights: only what comes behind the first difference runs anew."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.streaming.finite import finite
from secateur.streaming.forks import overflow
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.loss import block_losses
from secateur.streaming.template import run_layer
from secateur.streaming.walk import Walk


@dataclass(kw_only=True)
class Cache:
    """Tensors by key; those that were not asked for the longest leave when all are more than `limit` bytes."""

    limit: int
    held: dict[Hashable, Mapping[str, Tensor]] = field(default_factory=dict)
    size: int = 0

    def get(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        found = self.held.pop(key, None)
        if found is None:
            found = make()
            self.size += _bytes(found)
        self.held[key] = found
        while self.size > self.limit and self.held:
            self.size -= _bytes(self.held.pop(next(iter(self.held))))
        return found


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors.values())


@dataclass(kw_only=True)
class Replay:
    """`limit`: bytes of hidden states that are kept between layers; those before the first layer are kept in any case."""

    walk: Walk
    ids: Int[Tensor, "block token"]
    limit: int
    boundaries: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> the hidden states before it in the model that was settled on."""

    @torch.no_grad()
    def loss(self, first: int, weights: Callable[[int], Mapping[str, Tensor]], *, settle: bool = False) -> float:
        """Mean over predicted tokens. `first`: the layer from which on the model differs from the settled one."""
        walk, num_layers = self.walk, self.walk.binding.num_layers
        if not self.boundaries:
            shape: Any = (*self.ids.shape, walk.binding.sizes["hidden"])
            hidden = HiddenStates(shape, walk.dtype)
            walk.start(self.ids, hidden)
            self.boundaries[0] = hidden.get(0, len(self.ids))
        start = max(n for n in self.boundaries if n <= first)
        x = self.boundaries[start]
        stride = -(-num_layers * x.numel() * x.element_size() // max(self.limit, 1))
        for number in range(start, num_layers):
            x = self._run(number, weights(number), x)
            if settle and (number + 1) % stride == 0 and number + 1 < num_layers:
                self.boundaries[number + 1] = x
        total = block_losses(walk, self.ids, lambda a, b: x[a:b]).sum()
        return float(total) / (len(self.ids) * (self.ids.shape[1] - 1))

    def _run(self, number: int, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        walk, module, out = self.walk, self.walk.module(number), torch.empty_like(x)
        for a, b in walk.batches(self.ids.shape):
            found = run_layer(walk.binding, module, weights, x[a:b].to(walk.device), walk.call(number, b - a))
            if not finite(found):
                raise overflow(number)
            out[a:b] = found
        return out
