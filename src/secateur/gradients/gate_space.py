"""The space of unit gates: who has one, what a direction in it does to a layer, and gradients from slopes along directions.

Gates belong to the finest units: single query heads where heads are grouped, and channels. The gradient of a coarser unit's gate is
the sum of its parts'.

    t_n = mean_r rho[n, r] d_nr        of sample n, d_nr the signs of its gates in round r
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur import axes
from secateur.families.binding import Binding
from secateur.gradients.branches import Change
from secateur.gradients.directions import Design
from secateur.gradients.estimator import Task, lines_are_columns, oriented, reader_of, unit_of_column
from secateur.gradients.lifting import lifted_fisher, lifted_gradient, no_fisher, no_gradient
from secateur.gradients.sampling import finished, load_slopes, measured
from secateur.statistics.gate_gradient import GateGradient, unit_gates
from secateur.statistics.weight_gradient import ELEMENTS
from secateur.streaming.collect import Request
from secateur.streaming.source import read_layer, to_device


@dataclass(frozen=True, kw_only=True)
class GateSpace:
    """The gates of one layer, in a row. All layers have the same."""

    num_gates: int
    gate_of_column: Mapping[str, Int[Tensor, " column"]]
    """Reader -> the gate that each channel of its input has."""

    @classmethod
    def of(cls, binding: Binding, pruned: tuple[str, ...]) -> "GateSpace":
        start, columns = 0, {}
        for axis in dict.fromkeys(_finest(binding, axis) for axis in pruned):
            columns[reader_of(binding, axis)] = start + unit_of_column(binding, axis)
            start += axes.num_units(axis, binding.sizes)
        return cls(num_gates=start, gate_of_column=columns)

    def changes(self, factors: Float[Tensor, "block gate"]) -> dict[str, Change]:
        """Multiply the inputs of the readers by their gates, in the gates' type at least, and round once."""
        return {reader: partial(_scaled, factors[:, gates, None].mT) for reader, gates in self.gate_of_column.items()}

    def units(self, binding: Binding, axis: str, t: Float[Tensor, "sample gate"]) -> Float[Tensor, "sample unit"]:
        """Gate gradients of an axis's units from those of the gates."""
        gates = self.gate_of_column[reader_of(binding, axis)]
        unit_of_gate = torch.full((self.num_gates,), -1).scatter_(0, gates, unit_of_column(binding, axis))
        return unit_gates(t, unit_of_gate, axes.num_units(axis, binding.sizes))


def _finest(binding: Binding, axis: str) -> str:
    return next((child for child, parent in axes.PARENT.items() if parent == axis and child in binding.sizes), axis)


def _scaled(factors: Float[Tensor, "block 1 column"], x: Tensor) -> Tensor:
    return (x * factors).to(x.dtype)


def gate_gradients(rho: Float[Tensor, "sample round"], design: Design, layer: int, gates: int) -> Float[Tensor, "sample gate"]:
    """t_n = mean_r rho[n, r] d_nr, float64; slot n * rounds + r has the signs d_nr."""
    samples, rounds = rho.shape
    total = torch.zeros(samples, gates, dtype=torch.float64)
    for slots in torch.arange(rho.numel()).split(max(1, ELEMENTS // gates)):
        total.index_add_(0, slots // rounds, rho.flatten()[slots, None] * design(slots, layer))
    return total / rounds


# Saves the slopes of a task along a design's directions, and the moments of the watched modules' inputs.
Measure = Callable[[Task, Request, GateSpace, Design], Iterator[int]]


def estimate_gates(task: Task, space: GateSpace, design: Design, measure: Measure) -> Iterator[int]:
    """Both passes, or what an earlier task left to do of them."""
    if not finished(task):
        watched = Request.of(task.binding, task.axes, {"moments"})
        if not measured(task, watched):
            yield from measure(task, watched, space, design)
        yield from reduce_gates(task, space, load_slopes(task), design)
    task.store.sweep()


def reduce_gates(task: Task, space: GateSpace, rho: Float[Tensor, "sample round"], design: Design) -> Iterator[int]:
    """The second pass: fill the store layer by layer, which holds the moments of the readers' inputs already.

    Yields the number of each layer. With `task.resume`, layers that hold everything are passed over.
    """
    readers = [m for m in task.request.kinds if m in space.gate_of_column]
    read: dict[str, Tensor] = {}
    for number in range(task.binding.num_layers):
        if task.resume and task.store.has(number, task.request):
            continue
        t = gate_gradients(rho, design, number, space.num_gates)
        read = read_layer(task.walk.source, number, [f"{m}.weight" for m in readers], over=read)
        weights = to_device(read, task.walk.device, task.walk.dtype)
        found: dict[str, dict[str, Any]] = {}
        for place, kinds in task.request.kinds.items():
            if place in axes.PRUNABLE:
                found[place] = {"gate-gradient": GateGradient.of(space.units(task.binding, place, t))}
            elif place in readers:
                found[place] = _lifted(task, number, place, kinds, weights[f"{place}.weight"], space.gate_of_column[place], t)
            else:
                found[place] = _nothing(task.binding, place, kinds)
            for value in found[place].values():
                value.require_finite(f"layer {number}, {place}")
        task.store.save(number, found)
        yield number


def _lifted(
    task: Task, layer: int, module: str, kinds: frozenset[str], stored: Tensor, gates: Int[Tensor, " column"], t: Tensor
) -> dict[str, Any]:
    weight, found = oriented(task.binding, module, stored), dict[str, Any]()
    gradient = GateGradient.of(t.to(weight.device))
    gates = gates.to(weight.device)
    if "weight-gradient" in kinds:
        inputs = task.store.load(layer, modules=[module], kinds={"moments"})[module]["moments"]
        found["weight-gradient"] = lifted_gradient(weight, gates, gradient, inputs)
    if "weight-fisher" in kinds:
        found["weight-fisher"] = lifted_fisher(weight, gates, gradient, task.ids.shape[1])
    return found


def _nothing(binding: Binding, module: str, kinds: frozenset[str]) -> dict[str, Any]:
    spec = binding.layer[f"{module}.weight"]
    column = min(spec.inputs)
    lines = axes.shape(spec, binding.sizes)[column if lines_are_columns(binding, module) else 1 - column]
    made = {"weight-gradient": no_gradient, "weight-fisher": no_fisher}
    return {kind: make(lines) for kind, make in made.items() if kind in kinds}
