"""What an estimator of gradients is, and what it is asked for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from secateur import axes
from secateur.families.binding import Binding
from secateur.plan import parameters
from secateur.streaming.collect import Request, Store
from secateur.streaming.walk import Walk

KINDS = frozenset({"gate-gradient", "weight-gradient", "weight-fisher", "output-gradient-gram"})


@dataclass(frozen=True, kw_only=True)
class Task:
    """One estimation: of what, on which blocks, and where it goes."""

    walk: Walk
    ids: Int[Tensor, "block token"]
    axes: tuple[str, ...]
    """The prunable axes whose units are meant."""
    request: Request
    """Place -> kinds. A place is an axis for gates, a module path for the gradients of its weight and of its output."""
    store: Store
    """Of this estimator, its options and its seed alone."""
    seed: int = 0
    spill: bool = False
    """Keep hidden states in files."""
    resume: bool = False

    @property
    def binding(self) -> Binding:
        return self.walk.binding


@runtime_checkable
class Estimator(Protocol):
    """A frozen dataclass that fills a store with gradient statistics."""

    name: ClassVar[str]
    paper: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    """The kinds of statistics it can give."""
    seeded: ClassVar[bool]
    """Its result depends on the seed."""

    def estimate(self, task: Task) -> Iterator[int]:
        """Fill `task.store`; yields the number of a layer whenever one has been run or reduced."""
        ...

    def passes(self) -> tuple[int, int]:
        """(forward passes, backward passes) over the calibration set."""
        ...

    def states(self, binding: Binding, request: Request) -> int:
        """Copies of the calibration blocks' hidden states that are held at once for `request`, in memory or in files."""
        ...


def gradient_request(binding: Binding, pruned: Iterable[str], kinds: Iterable[str]) -> Request:
    """Everything of these kinds that the units of the pruned axes need."""
    wanted, places = frozenset(kinds), dict[str, frozenset[str]]()

    def add(place: str, kind: str) -> None:
        if kind in wanted:
            places[place] = places.get(place, frozenset()) | {kind}

    for axis in pruned:
        add(axis, "gate-gradient")
        for name, spec in binding.layer.items():
            if len(spec.dims) == 2 and spec.mentions(axis):
                module = name.rpartition(".")[0]
                add(module, "weight-gradient")
                add(module, "weight-fisher")
                if spec.reads(axis):
                    add(module, "output-gradient-gram")
    return Request(kinds=places)


def reader_of(binding: Binding, axis: str) -> str:
    """Path of the module whose input is the activation of an axis's units."""
    (name,) = binding.readers(axis)
    return name.rpartition(".")[0]


def unit_of_column(binding: Binding, axis: str) -> Int[Tensor, " column"]:
    """The unit of `axis` that each input channel of its reader belongs to."""
    spec = binding.layer[f"{reader_of(binding, axis)}.weight"]
    return axes.unit_index(spec.dims[min(spec.inputs)], binding.sizes, axis)


def lines_are_columns(binding: Binding, module: str) -> bool:
    """The units of a coupled matrix lie along its inputs."""
    spec = binding.layer[f"{module}.weight"]
    return any(spec.reads(axis) for axis in axes.PRUNABLE)


def oriented(binding: Binding, module: str, weight: Tensor) -> Tensor:
    """A matrix with outputs first, whichever way it is stored."""
    return weight if min(binding.layer[f"{module}.weight"].inputs) == 1 else weight.mT


def working_bytes(request: Request, binding: Binding, dtype: torch.dtype) -> int:
    """One layer's in memory while they are gathered: matrices in float32 (float64 where the walk is), or a perturbed layer."""
    wide, total = max(dtype.itemsize, 4), 0
    for place, kinds in request.kinds.items():
        if kinds - {"gate-gradient"}:
            spec = binding.layer[f"{place}.weight"]
            shape = axes.shape(spec, binding.sizes)
            if "weight-gradient" in kinds:
                total += shape[0] * shape[1] * wide
            if "output-gradient-gram" in kinds:
                total += 8 * shape[1 - min(spec.inputs)] ** 2
    return max(total, parameters(binding.layer.values(), binding.sizes) * dtype.itemsize if request.kinds else 0)


def statistics_bytes(request: Request, binding: Binding) -> int:
    """One layer's on disk: of the matrices F, and of vectors over lines and units."""
    total = 0
    for place, kinds in request.kinds.items():
        if "gate-gradient" in kinds:
            total += 24 * axes.num_units(place, binding.sizes)
        if kinds - {"gate-gradient"}:
            shape = axes.shape(binding.layer[f"{place}.weight"], binding.sizes)
            outputs = shape[1 - min(binding.layer[f"{place}.weight"].inputs)]
            total += 64 * max(shape) + (4 * outputs**2 if "output-gradient-gram" in kinds else 0)
    return total
