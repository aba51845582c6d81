"""Runs the first part of a half of a layer, up to what its output matrix reads, for a part of the batch and nothing else."""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from secateur.families.family import Block, Family
from secateur.runtime.selection import Part

CACHES = ("past_key_values", "layer_past")


class Tap(nn.Module):
    """Stands in for an output matrix: remembers what it was to read, and returns zeros of the size that it would have."""

    seen: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.new_zeros(()).expand(*x.shape[:-1], self.outputs)


def twin(module: nn.Module) -> nn.Module:
    """A copy of the modules that shares their weights, buffers and configuration."""
    shared: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
    for part in module.modules():
        if hasattr(part, "config"):
            shared[id(part.config)] = part.config
    return copy.deepcopy(module, shared)


class Ahead:
    """The dense first part of one half. `outputs`: how many the output matrix has."""

    def __init__(self, layer: nn.Module, block: Block, reader: str, outputs: int, family: Family) -> None:
        self.family = family
        self.steps: Sequence[nn.Module] = [layer.get_submodule(name) for name in block.through]
        if not self.steps:
            self.module = twin(layer.get_submodule(block.entry))
            self.tap = Tap(outputs)
            owner, _, last = reader.removeprefix(block.entry + ".").rpartition(".")
            setattr(self.module.get_submodule(owner), last, self.tap)

    def run(
        self,
        first: Float[Tensor, "sample token hidden"],
        part: Part,
        shape: tuple[int, int],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Float[Tensor, "sample token channel"]:
        """`first`: the probe's normalised states; `args` and `kwargs`: what the whole batch's call has besides, of `shape`."""
        if self.steps:
            return self.read(first, (), {})
        rest = [self._part("", value, part, shape) for value in args]
        return self.read(first, rest, {name: self._part(name, value, part, shape) for name, value in kwargs.items()})

    def read(
        self, first: Float[Tensor, "sample token hidden"], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Float[Tensor, "sample token channel"]:
        """What the output matrix would read of `first`, called with the rest as it is."""
        if self.steps:
            for step in self.steps:
                first = step(first)
            return first
        self.module(first, *args, **kwargs)
        seen = self.tap.seen
        del self.tap.seen
        return seen

    def _part(self, name: str, value: Any, part: Part, shape: tuple[int, int]) -> Any:
        """The probe's part of one argument: true positions and the mask among the probed tokens, and no cache."""
        if name in CACHES:
            return None
        if name == "use_cache":
            return False
        if isinstance(value, tuple):
            return tuple(self._part(name, one, part, shape) for one in value)
        if not isinstance(value, Tensor):
            return value
        batch, length = shape
        if name in self.family.inputs:  # [(batch heads), 1, key]
            rows = value.unflatten(0, (batch, -1)).index_select(0, part.samples)
            return rows.flatten(0, 1).index_select(-1, part.tokens)
        if value.ndim == 4 and name == "attention_mask":
            rows = value.index_select(0, part.samples) if value.shape[0] > 1 else value
            return rows.index_select(2, part.tokens).index_select(3, part.tokens)
        if value.ndim >= 2 and value.shape[0] in (1, batch) and value.shape[1] == length:
            return part.of(value)
        return value.index_select(0, part.tokens) if value.ndim == 1 and len(value) == length else value
