"""Gradients with respect to weights, from slopes along directions: never whole, and for one layer at a time.

    g_n = mean_k rho[n, k] z_k        of sample n's summed loss

The calibration set's gradient is their sum. Directions are made again row by row, and rows are reduced to line sums at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur import axes
from secateur.gradients.directions import ROWS, Direction
from secateur.gradients.estimator import Task, lines_are_columns, oriented, reader_of, unit_of_column
from secateur.gradients.sampling import finished
from secateur.statistics.gate_gradient import GateGradient, unit_gates
from secateur.statistics.moments import Moments
from secateur.statistics.weight_gradient import (
    ELEMENTS,
    SampleSums,
    WeightFisher,
    WeightGradient,
    reduce_fisher,
    reduce_gradient,
    row_blocks,
)
from secateur.streaming.collect import Request, Seen, collect
from secateur.streaming.source import read_layer, to_device


def reduce_layers(task: Task, rho: Float[Tensor, "sample query"], direction: Direction) -> Iterator[int]:
    """The second pass: fill the store layer by layer, which holds the moments of the matrices' inputs already.

    Yields the number of each layer. With `task.resume`, layers that hold everything are passed over.
    """
    modules = [place for place in task.request.kinds if place not in axes.PRUNABLE]
    readers = [reader_of(task.binding, place) for place in task.request.kinds if place in axes.PRUNABLE]
    names, read = [f"{m}.weight" for m in dict.fromkeys([*modules, *readers])], {}
    for number in range(task.binding.num_layers):
        if task.resume and task.store.has(number, task.request):
            continue
        read = read_layer(task.walk.source, number, names, over=read)
        weights = to_device(read, task.walk.device, task.walk.dtype)
        found = {}
        for place, kinds in task.request.kinds.items():
            module = reader_of(task.binding, place) if place in axes.PRUNABLE else place
            matrix = SampledMatrix(
                weight=oriented(task.binding, module, weights[f"{module}.weight"]), rho=rho, direction=direction,
                layer=number, module=module,
            )  # fmt: skip
            found[place] = _statistics(task, place, kinds, matrix)
            for value in found[place].values():
                value.require_finite(f"layer {number}, {place}")
        del weights
        task.store.save(number, found)
        yield number


def reduce_after_clean_pass(task: Task, rho: Float[Tensor, "sample query"], direction: Direction) -> Iterator[int]:
    """For slopes that no loss is needed for: one plain pass for the moments, then `reduce_layers`."""
    if not finished(task):
        watched = Request.of(task.binding, task.axes, {"moments"}, "coupled")
        yield from collect(task.walk, task.ids, watched, task.store, spill=task.spill, resume=task.resume)
        yield from reduce_layers(task, rho, direction)
    task.store.sweep()


def _statistics(task: Task, place: str, kinds: frozenset[str], matrix: "SampledMatrix") -> dict[str, Any]:
    if place in axes.PRUNABLE:
        units = unit_of_column(task.binding, place).to(task.walk.device)
        t = unit_gates(matrix.column_gates(), units, axes.num_units(place, task.binding.sizes))
        return {"gate-gradient": GateGradient.of(t)}
    found, by_column = {}, lines_are_columns(task.binding, place)
    if "weight-gradient" in kinds:
        found["weight-gradient"] = matrix.gradient(_moments(task, matrix), by_column=by_column)
    if "weight-fisher" in kinds:
        found["weight-fisher"] = matrix.fisher(task.ids.shape[1], by_column=by_column)
    return found


def _moments(task: Task, matrix: "SampledMatrix") -> Moments:
    seen: Seen = task.store.load(matrix.layer, modules=[matrix.module], kinds={"moments"})
    return seen[matrix.module]["moments"]


@dataclass(frozen=True, kw_only=True)
class SampledMatrix:
    """The sampled gradients of one matrix. Elements are float32, or float64 where the weight or the direction is."""

    weight: Float[Tensor, "out column"]
    rho: Float[Tensor, "sample query"]
    direction: Direction
    layer: int = 0
    module: str = ""

    def z(self, query: int, rows: slice) -> Float[Tensor, "row column"]:
        z = self.direction(query, self.layer, self.module, rows, self.weight.shape[1]).to(self.weight.device)
        return z.double() if self.weight.dtype == torch.float64 else z

    def total(self, rows: slice) -> Float[Tensor, "row column"]:
        """sum_n g_n"""
        first, *rest = (self.rho.sum(0) / self.rho.shape[1]).tolist()
        total = self.z(0, rows) * first
        for query, slope in enumerate(rest, 1):
            total.add_(self.z(query, rows), alpha=slope)
        return total

    def samples(self, rows: slice) -> Iterator[Float[Tensor, "sample row column"]]:
        """g_n of some rows, a few samples at a time. All queries' directions of these rows are in memory together."""
        z = torch.stack([self.z(query, rows) for query in range(self.rho.shape[1])])
        for rho in self.rho.to(z).split(max(1, ELEMENTS // z[0].numel())):
            yield torch.einsum("nk,krc->nrc", rho, z) / len(z)

    def gradient(self, inputs: Moments, *, by_column: bool) -> WeightGradient:
        return reduce_gradient(self.weight, self.total, inputs, by_column=by_column)

    def fisher(self, tokens: int, *, by_column: bool) -> WeightFisher:
        """Of the samples' mean token losses."""
        return reduce_fisher(self.weight, self.sums, len(self.rho), tokens, by_column=by_column)

    def sums(self, rows: slice) -> SampleSums:
        parts = [SampleSums.of(g for some in self.samples(few) for g in some) for few in _few_rows(rows)]
        return SampleSums(*map(torch.cat, zip(*parts, strict=True)))

    def column_gates(self) -> Float[Tensor, "sample column"]:
        """sum_i g_n,ij W_ij for each column j, float64: the gate gradients of the inputs, if this matrix reads them alone."""
        along = torch.zeros(self.rho.shape[1], self.weight.shape[1], dtype=torch.float64, device=self.weight.device)
        for query, total in enumerate(along):
            for rows in row_blocks(self.weight):
                z = self.z(query, rows)
                total += (z * self.weight[rows].to(z.dtype)).sum(0, dtype=torch.float64)
        return self.rho.to(along) @ along / len(along)


def _few_rows(rows: slice) -> Iterator[slice]:
    yield from (slice(at, min(at + ROWS, rows.stop)) for at in range(rows.start, rows.stop, ROWS))
