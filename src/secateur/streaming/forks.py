"""One walk in which copies of the blocks fork off: each runs one layer with other weights, and all layers behind it as they are.

Each layer's weights are read once, for all copies.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.streaming.finite import blame, finite
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.loss import block_losses
from secateur.streaming.source import read_layer, to_device
from secateur.streaming.template import run_layer
from secateur.streaming.walk import Walk

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Forks(Generic[Key]):
    """`at`: layer -> the forks that leave there. `changed`: the weights of that layer that a fork replaces, by relative name.
    `common`: those of a layer that all streams replace.

    `directory`: where the hidden states are spilled; None keeps them in memory. Made for one walk.
    """

    walk: Walk
    ids: Int[Tensor, "block token"]
    at: Mapping[int, Sequence[Key]]
    changed: Callable[[Key], Mapping[str, Tensor]]
    directory: Path | None
    common: Callable[[int], Mapping[str, Tensor]] = lambda number: {}
    states: dict[int, HiddenStates] = field(default_factory=dict)
    """Of the plain stream under -1, and of all forks of a layer under its number."""

    @torch.no_grad()
    def layers(self) -> Iterator[int]:
        """Run the walk; yields each layer's number."""
        walk, read = self.walk, {}
        plain = self.states[-1] = self._hidden(1, "plain")
        walk.start(self.ids, plain)
        for number in range(walk.binding.num_layers):
            read = read_layer(walk.source, number, over=read)
            weights = to_device({**read, **self.common(number)}, walk.device, walk.dtype)
            for at in [n for n in self.states if n >= 0]:
                for fork in range(len(self.at[at])):
                    self._run(number, weights, self.states[at], self.states[at], fork)
            if keys := self.at.get(number):
                self.states[number] = self._hidden(len(keys), f"fork-{number:03d}")
                for fork, key in enumerate(keys):
                    other = {**weights, **to_device(dict(self.changed(key)), walk.device, walk.dtype)}
                    self._run(number, other, plain, self.states[number], fork)
            self._run(number, weights, plain, plain, -1)
            del weights
            for hidden in self.states.values():
                hidden.commit(number + 1)
                hidden.forget(number)
            yield number

    def losses(self) -> tuple[Float[Tensor, " block"], dict[Key, Float[Tensor, " block"]]]:
        """Summed loss of every block: of the plain stream, and of each fork."""
        order = sorted(self.states)
        keys = [key for at in order[1:] for key in self.at[at]]
        found = block_losses(self.walk, self.ids.repeat(1 + len(keys), 1), self._getter(order)).view(1 + len(keys), -1)
        return found[0], dict(zip(keys, found[1:], strict=True))

    def _getter(self, order: Sequence[int]) -> Callable[[int, int], Tensor]:
        """Blocks of all streams behind one another."""
        starts = [0]
        for at in order:
            starts.append(starts[-1] + self.states[at].shape[0])

        def get(start: int, stop: int) -> Tensor:
            parts = []
            while start < stop:
                which = bisect_right(starts, start) - 1
                end = min(stop, starts[which + 1])
                parts.append(self.states[order[which]].get(start - starts[which], end - starts[which]))
                start = end
            return torch.cat(parts)

        return get

    def _hidden(self, copies: int, name: str) -> HiddenStates:
        shape = (copies * len(self.ids), self.ids.shape[1], self.walk.binding.sizes["hidden"])
        return HiddenStates(shape, self.walk.dtype, directory=self.directory, spill=self.directory is not None, name=name)

    def _run(self, number: int, weights: Mapping[str, Tensor], source: HiddenStates, to: HiddenStates, fork: int) -> None:
        """Run a layer for one fork, from its own states or from the plain ones; fork -1 is the plain stream itself."""
        walk, start = self.walk, max(fork, 0) * len(self.ids)
        read = start if source is to else 0
        module = walk.module(number)
        for a, b in walk.batches(self.ids.shape):
            x = source.get(read + a, read + b).to(walk.device)
            out = run_layer(walk.binding, module, weights, x, walk.call(number, b - a))
            if not finite(out):
                raise blame(walk.source, number) if fork < 0 else overflow(number)
            to.put(start + a, out)


def overflow(layer: int) -> UserError:
    return UserError(
        f"layer {layer} gives NaN or infinity in a model that is pruned on trial, and not in the whole one. Compute in a wider type: "
        f"--dtype fp32 (or bf16 instead of fp16)."
    )
