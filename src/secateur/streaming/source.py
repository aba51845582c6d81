"""Where weights come from: the one interface of checkpoints on disk and models in memory."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from secateur.axes import Kept
from secateur.families.binding import Binding


@runtime_checkable
class Source(Protocol):
    """Weights by parameter name, in their stored type, on the host. Nothing is kept between calls."""

    @property
    def binding(self) -> Binding: ...

    @property
    def fingerprint(self) -> str:
        """Changes when any weight or the configuration changes; empty where that cannot be told."""
        ...

    def kept(self, layer: int) -> Kept:
        """What an earlier pruning with unequal layers left of a layer; empty where it has the binding's sizes."""
        ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """`out`: a tensor read before that may be overwritten; fresh memory costs more than the reading itself."""
        ...

    def read_rows(self, name: str, rows: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]: ...

    def origin(self, name: str) -> str:
        """Where a weight lies, for messages."""
        ...


def read_layer(
    source: Source, layer: int, names: Iterable[str] | None = None, *, over: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights of one layer by relative name. `over`: another layer's, no longer needed, whose memory may be taken."""
    binding, old = source.binding, over or {}
    return {n: source.read(binding.layer_name(layer, n), old.get(n)) for n in (binding.layer if names is None else names)}


def to_device(weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: w.to(device=device, dtype=dtype) for n, w in weights.items()}
