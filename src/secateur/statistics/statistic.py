"""What every statistic and every accumulator can do."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Finding(Protocol):
    """What a walk leaves in its store."""

    kind: ClassVar[str]
    """Its name in `STATISTICS`."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors to save."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], /) -> "Finding": ...

    def finite(self) -> bool:
        """No NaN and no infinity in it."""
        ...

    def require_finite(self, where: str, /) -> "Finding":
        """Itself. Raises `UserError` that names `where` if it is not finite."""
        ...


@runtime_checkable
class Statistic(Finding, Protocol):
    """A monoid over tokens: the statistic of two disjoint sets of tokens is the sum of their statistics."""

    def __add__(self, other: Any, /) -> "Statistic": ...


@runtime_checkable
class Accumulator(Protocol):
    """Gathers one statistic of a module's input, block of tokens by block of tokens.

    One of a whole layer gathers from what goes in and what comes out: its `update` takes both.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None: ...

    def update(self, *x: Tensor) -> None:
        """Add the tokens of x, [..., token, channel]; x is not kept."""
        ...

    def result(self) -> Statistic: ...


def not_finite(kind: str, where: str) -> str:
    """The message for a statistic with NaN or infinity."""
    return (
        f"{where}: its {kind} statistic holds NaN or infinity. Either the weights before it do, or its activations overflow. "
        "Check the checkpoint, and use --dtype bf16 or fp32 instead of fp16."
    )
