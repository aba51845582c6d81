"""Ladders of scores and a budget -> how many units each layer keeps. Sees no weights. Lazy: imports no torch."""

from typing import TYPE_CHECKING

from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.allocation.allocator import Allocator, TryingAllocator

ALLOCATORS: "Registry[Allocator | TryingAllocator]" = Registry(
    kind="allocation",
    group="secateur.allocators",
    builtin={
        "uniform": "secateur.allocation.uniform:Uniform",
        "uniform-floor": "secateur.allocation.uniform:UniformFloor",
        "uniform-scored": "secateur.allocation.uniform:UniformScored",
        "global": "secateur.allocation.global_:Global",
        "measured": "secateur.allocation.measured:Measured",
        "search": "secateur.allocation.search:Search",
    },
)
