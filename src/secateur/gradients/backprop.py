"""Exact gradients: backpropagation, one layer in memory at a time.

Forward once, keeping the hidden states between layers; then back from the last layer, recomputing each with autograd. Two
forward passes and one backward pass in all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.families.binding import Binding
from secateur.gradients.estimator import KINDS, Task, lines_are_columns, oriented, reader_of, unit_of_column
from secateur.gradients.samples import SampleGradients, states_of_samples
from secateur.statistics.gate_gradient import GateGradient, column_gates, unit_gates
from secateur.statistics.output_gradient import OutputGradientGramAccumulator
from secateur.statistics.weight_gradient import WeightGradientAccumulator
from secateur.streaming.backward import GradientObserver, Taps, forward_for_back, walk_back
from secateur.streaming.boundaries import Boundaries
from secateur.streaming.collect import Request
from secateur.streaming.hidden import HiddenStates, boundary, intact
from secateur.streaming.loss import head_gradient


@dataclass(frozen=True, kw_only=True)
class Backprop:
    name: ClassVar = "backprop"
    paper: ClassVar = ""
    kinds: ClassVar[frozenset[str]] = KINDS
    seeded: ClassVar = False

    def passes(self) -> tuple[int, int]:
        return 2, 1

    def states(self, binding: Binding, request: Request) -> int:
        return binding.num_layers + 2 + states_of_samples(binding, request)

    def estimate(self, task: Task) -> Iterator[int]:
        """Goes on after the last finished layer with `task.resume`; the walk forward is run again and gives the same."""
        walk, store, num_layers = task.walk, task.store, task.binding.num_layers
        layer = next((i for i in reversed(range(num_layers)) if not store.has(i, task.request)), -1)
        above = boundary(store.directory, layer + 1, "gradient")
        goes_on = task.resume and 0 <= layer < num_layers - 1 and intact(above, last=False)
        store.sweep(keep=above if goes_on else None)
        if layer < 0:
            return
        top = layer if goes_on else num_layers - 1
        shape: Any = (*task.ids.shape, task.binding.sizes["hidden"])
        boundaries = Boundaries(store.directory, spill=task.spill)
        with HiddenStates(shape, walk.dtype, directory=store.directory if task.spill else None, spill=task.spill) as hidden:
            yield from forward_for_back(walk, task.ids, hidden, boundaries, layers=top if goes_on else num_layers)
        del hidden
        with (
            HiddenStates(shape, walk.dtype, directory=store.directory, spill=task.spill, name="gradient") as gradient,
            ExitStack() as kept,
        ):
            if goes_on:
                gradient.restore(top + 1)
            else:
                for at, piece, _ in head_gradient(walk, task.ids, lambda a, b: boundaries.get(num_layers, a, b)):
                    gradient.put(at, piece)
                boundaries.drop(num_layers)
                gradient.commit(num_layers)
            current = LayerTaps(task, kept)
            for number in walk_back(walk, boundaries, gradient, current.taps, first=top):
                store.save(number, current.result(number))
                gradient.forget(number + 1)
                yield number
            gradient.forget(0)
        boundaries.drop(0)


class LayerTaps:
    """The accumulators of the layer that is being walked back through. Files that they need are entered in `kept`."""

    def __init__(self, task: Task, kept: ExitStack) -> None:
        self.task, self.binding, self.kept = task, task.binding, kept
        self.units = {axis: unit_of_column(self.binding, axis).to(task.walk.device) for axis in task.axes}
        self.counts = {axis: int(units.max()) + 1 for axis, units in self.units.items()}

    def taps(self, layer: int, weights: Mapping[str, Tensor]) -> Taps:
        self.gates: dict[str, list[GateGradient]] = {}
        self.results: dict[tuple[str, str], Callable[[], Any]] = {}
        inputs: dict[str, list[GradientObserver]] = {}
        outputs: dict[str, list[GradientObserver]] = {}
        for place, kinds in self.task.request.kinds.items():
            if "gate-gradient" in kinds:
                self.gates[place] = []
                inputs.setdefault(reader_of(self.binding, place), []).append(self._gate_observer(place))
            for kind in sorted(kinds - {"gate-gradient"}):
                observer, self.results[place, kind] = self._accumulator(place, kind, weights[f"{place}.weight"])
                outputs.setdefault(place, []).append(observer)
        return Taps(inputs=inputs, outputs=outputs)

    def _accumulator(self, module: str, kind: str, stored: Tensor) -> tuple[GradientObserver, Callable[[], Any]]:
        matrix, by_column = oriented(self.binding, module, stored), lines_are_columns(self.binding, module)
        if kind == "output-gradient-gram":
            gram = OutputGradientGramAccumulator(len(matrix), self.task.walk.device)
            return lambda x, gradient: gram.update(gradient), gram.result
        if kind == "weight-gradient":
            whole = WeightGradientAccumulator(matrix, by_column=by_column)
            return whole.update, whole.result
        samples = self.kept.enter_context(SampleGradients(self.task, module, matrix, by_column=by_column))
        return samples.update, samples.result

    def _gate_observer(self, axis: str) -> GradientObserver:
        def observe(a: Float[Tensor, "block token column"], gradient: Float[Tensor, "block token column"]) -> None:
            t = unit_gates(column_gates(a, gradient), self.units[axis], self.counts[axis])
            self.gates[axis].append(GateGradient.of(t))

        return observe

    def result(self, layer: int) -> dict[str, dict[str, Any]]:
        """Everything that was asked for, and nothing of it is kept."""
        found: dict[str, dict[str, Any]] = {}
        for axis, parts in self.gates.items():
            found.setdefault(axis, {})["gate-gradient"] = sum(parts[1:], start=parts[0])
        for place, kind in [*self.results]:
            found.setdefault(place, {})[kind] = self.results.pop((place, kind))()
        self.kept.close()
        for place, kinds in found.items():
            for value in kinds.values():
                value.require_finite(f"layer {layer}, {place}")
        return found
