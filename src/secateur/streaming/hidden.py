"""The hidden states between two layers: in memory, or in a file; and on disk for a walk that may be resumed."""

import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import UserError
from secateur.streaming.tensorfile import TensorFile, TensorWriter


class HiddenStates:
    """[block, token, hidden] of the boundary before `layer`, replaced block by block while a layer runs.

    With `directory`, `commit` leaves the boundary there as `NAME-NNN.safetensors`. With `spill` the blocks live in files alone,
    so that memory holds no more than the blocks in use; else they are held on `device`, the CPU by default. As a context it removes
    what it was writing when the block ends badly.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        directory: Path | None = None,
        spill: bool = False,
        name: str = "hidden",
        device: torch.device | None = None,
    ) -> None:
        assert directory is not None or not spill, "spilling needs a directory"
        self.shape, self.dtype = shape, dtype
        self._directory, self._spill, self._name = directory, spill, name
        self._memory = None if spill else torch.empty(shape, dtype=dtype, device=device)
        self._reader: TensorFile | None = None
        self._writer: TensorWriter | None = None

    def __enter__(self) -> "HiddenStates":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.discard()

    @property
    def num_bytes(self) -> int:
        blocks, tokens, hidden = self.shape
        return blocks * tokens * hidden * self.dtype.itemsize

    def get(self, start: int, stop: int) -> Float[Tensor, "block token hidden"]:
        if self._memory is not None:
            return self._memory[start:stop]
        assert self._reader is not None
        return torch.stack([self._reader.read(str(i)) for i in range(start, stop)])

    def put(self, start: int, x: Float[Tensor, "block token hidden"]) -> None:
        if self._memory is not None:
            self._memory[start : start + len(x)] = x
            return
        if self._writer is None:
            self._writer = self._begin()
        for offset, block in enumerate(x.to("cpu", self.dtype)):
            self._writer.write(str(start + offset), block)

    def commit(self, layer: int) -> None:
        """All blocks of the boundary before `layer` have been put."""
        if self._directory is None:
            return
        if self._memory is not None:
            self._writer = self._begin()
            for i, block in enumerate(self._memory):
                self._writer.write(str(i), block)
        assert self._writer is not None
        self._writer.close(sync=False)  # a lost boundary costs time, not truth
        path = boundary(self._directory, layer, self._name)
        os.replace(self._writer.path, path)
        self._writer = None
        self._reader = TensorFile.open(path)

    def forget(self, layer: int) -> None:
        """The boundary before `layer` is needed no more, not even for resuming."""
        if self._directory is not None:
            boundary(self._directory, layer, self._name).unlink(missing_ok=True)

    def restore(self, layer: int) -> None:
        """Go on from the boundary that an earlier walk left before `layer`."""
        assert self._directory is not None
        self._reader = TensorFile.open(boundary(self._directory, layer, self._name))
        if self._memory is not None:
            for i in range(self.shape[0]):
                self._memory[i] = self._reader.read(str(i))

    def _begin(self) -> TensorWriter:
        assert self._directory is not None
        layout = {str(i): (self.dtype, self.shape[1:]) for i in range(self.shape[0])}
        return TensorWriter(self._directory / f"{self._name}.safetensors.partial", layout)


def intact(path: Path, *, last: bool = True) -> bool:
    """A boundary that can be gone on from. It was not synced: a power failure can leave tokens in it that are all zero.

    `last` is off for gradients: a block's last token predicts nothing, and its gradient is zero.
    """
    try:
        file = TensorFile.open(path)
        return all(bool(file.read(name)[: None if last else -1].any(-1).all()) for name in file.entries)
    except UserError:
        return False


def boundary(directory: Path, layer: int, name: str = "hidden") -> Path:
    return directory / f"{name}-{layer:03d}.safetensors"
