"""Which way a product with the kept rows of a matrix is computed, and the module that does it in the smaller layer."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.runtime import rows_eager

Gather = Literal["copy", "kernel"]


@runtime_checkable
class Products(Protocol):
    """`rows_eager` and `rows_triton`."""

    def to_rows(self, x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None = None) -> Tensor: ...

    def from_rows(self, x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None = None) -> Tensor: ...


def check(gather: Gather) -> None:
    if gather not in get_args(Gather):
        raise UserError(f"gather={gather!r}. Allowed: {', '.join(map(repr, get_args(Gather)))}.")


def products(x: Tensor, weight: Tensor) -> Products:
    """The kernel on a CUDA device, for what it takes; elsewhere the eager products, which give the same."""
    if weight.device.type != "cuda":
        return rows_eager
    from secateur.runtime import rows_triton

    return rows_triton if rows_triton.takes(x, weight) else rows_eager


def require(device: torch.device) -> None:
    """Raises `UserError` where the kernel is wanted on this device and Triton is missing."""
    if device.type == "cuda":
        from secateur.runtime import rows_triton  # noqa: F401


class Selected(nn.Module):
    """Stands for a matrix of the smaller layer, `inner`. While `index` is set, it reads those rows of the dense matrix `source`
    [row, other] instead of the compact ones, which then need not be there.

    `reads`: the rows are inputs, and the bias is whole; else they are outputs, and `bias` [row] is the dense one.
    """

    def __init__(self, inner: nn.Module, source: Tensor, bias: Tensor | None, *, reads: bool) -> None:
        super().__init__()
        self.inner: Any = inner
        self.source, self.bias, self.reads = source, bias, reads
        self.index: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.index is None:
            return self.inner(x)
        rows = products(x, self.source)
        if self.reads:
            return rows.from_rows(x, self.source, self.index, self.inner.bias)
        return rows.to_rows(x, self.source, self.index, self.bias)


def select_in_place(layer: nn.Module, sources: Mapping[str, Tensor], reading: Mapping[str, bool]) -> dict[str, Selected]:
    """Put a `Selected` in the place of every module of the smaller `layer` whose matrix is among the `sources`, by parameter name.
    Returns them by the names of the parameters that need no copy then."""
    found = {}
    for name, source in sources.items():
        path, _, last = name.rpartition(".")
        if source.ndim != 2:
            continue
        assert last == "weight", name
        module, bias = layer.get_submodule(path), f"{path}.bias"
        found[name] = Selected(module, source, sources.get(bias), reads=reading[name])
        if bias in sources:
            found[bias] = found[name]
        owner, _, last = path.rpartition(".")
        setattr(layer.get_submodule(owner), last, found[name])
    return found
