"""The hidden states before every layer, kept from the walk forward for the walk back."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.streaming.hidden import HiddenStates, boundary
from secateur.streaming.tensorfile import TensorFile


class Boundaries:
    """[block, token, hidden] before each layer: in memory, or in the files that a spilling walk leaves one by one.

    A boundary is dropped when the walk back has passed it: its memory is released, its file removed.
    """

    def __init__(self, directory: Path | None, *, spill: bool) -> None:
        assert directory is not None or not spill, "spilling needs a directory"
        self._directory, self._spill = directory, spill
        self._memory: dict[int, Tensor] = {}
        self._files: dict[int, TensorFile] = {}

    def keep(self, layer: int, hidden: HiddenStates) -> None:
        """Keep the boundary before `layer`, which `hidden` holds now."""
        if not self._spill:
            self._memory[layer] = hidden.get(0, hidden.shape[0]).clone()

    def get(self, layer: int, start: int, stop: int) -> Float[Tensor, "block token hidden"]:
        if not self._spill:
            return self._memory[layer][start:stop]
        assert self._directory is not None
        if layer not in self._files:
            self._files = {layer: TensorFile.open(boundary(self._directory, layer))}
        return torch.stack([self._files[layer].read(str(i)) for i in range(start, stop)])

    def drop(self, layer: int) -> None:
        self._memory.pop(layer, None)
        self._files.pop(layer, None)
        if self._spill and self._directory is not None:
            boundary(self._directory, layer).unlink(missing_ok=True)
