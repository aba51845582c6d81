"""The coupled group of an axis: every tensor of one layer that a unit of the axis is part of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur import axes
from secateur.axes import Sizes, Spec
from secateur.plan import unit_cost

Reduction = Literal["sum", "mean", "l2"]
ELEMENTS = 1 << 20  # of a weight at a time in float64: a layer's matrix is never copied whole


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One tensor of a layer and the names of its axes."""

    name: str
    """Its name inside the layer: `mlp.down_proj.weight`."""
    value: Tensor
    spec: Spec

    @property
    def module(self) -> str:
        """The module it belongs to: `mlp.down_proj`."""
        return self.name.rpartition(".")[0]

    @property
    def input_dim(self) -> int:
        """The dimension that is read: 1 for nn.Linear, 0 for Conv1D."""
        (dim,) = self.spec.inputs
        return dim

    @property
    def oriented(self) -> Float[Tensor, "out column"]:
        """A view with outputs first, whichever way the weight is stored; in its own dtype."""
        return self.value if self.input_dim == 1 else self.value.mT

    def unit_dim(self, axis: str) -> int:
        """The dimension of a two-dimensional weight that mentions an axis."""
        return self.input_dim if self.spec.reads(axis) else 1 - self.input_dim

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "row column"]]]:
        """Consecutive rows of `oriented`, a block at a time, as float64 copies that may be written to."""
        step = max(1, ELEMENTS // self.oriented.shape[1])
        for start in range(0, self.oriented.shape[0], step):
            rows = slice(start, start + step)
            yield rows, self.oriented[rows].to(torch.float64, copy=True)

    def power_sums(self, power: int) -> Float[Tensor, " column"]:
        """sum_i |W_ij|^power for every input channel j."""
        total = torch.zeros(self.oriented.shape[1], dtype=torch.float64, device=self.value.device)
        for _, block in self.blocks():
            total += block.abs_().pow_(power).sum(0)
        return total


@dataclass(frozen=True, kw_only=True)
class CoupledGroup:
    """The units of one axis in one layer, and the tensors they are made of. Made by `of`."""

    layer: int
    axis: str
    sizes: Sizes
    weights: Mapping[str, Matrix]
    """Every weight and bias that mentions the axis, by its name in the layer."""
    seed: int = 0

    @classmethod
    def of(
        cls, *, layer: int, axis: str, sizes: Sizes, specs: Mapping[str, Spec], weights: Mapping[str, Tensor], seed: int = 0
    ) -> "CoupledGroup":
        """Pick what mentions the axis from a layer's weights and their specs (which may name weights that are absent)."""
        named = {
            n: Matrix(name=n, value=w, spec=specs[n]) for n, w in weights.items() if n in specs and specs[n].mentions(axis)
        }
        return cls(layer=layer, axis=axis, sizes=sizes, weights=named, seed=seed)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The two-dimensional weights, without the biases."""
        return tuple(m for m in self.weights.values() if len(m.spec.dims) == 2)

    @property
    def readers(self) -> tuple[Matrix, ...]:
        """The matrices that have the axis on their input side."""
        return tuple(m for m in self.matrices if m.spec.reads(self.axis))

    @property
    def reader(self) -> Matrix:
        """The one matrix that consumes the units' activations; its columns fully describe what the units do."""
        found = self.readers
        assert len(found) == 1, f"layer {self.layer}, axis {self.axis}: {len(found)} readers"
        return found[0]

    @property
    def reader_matrix(self) -> Float[Tensor, "out column"]:
        """The reader in float64, outputs first: a whole copy. `reader.blocks` and `reader.power_sums` need none."""
        return self.reader.oriented.double()

    @property
    def num_units(self) -> int:
        return axes.num_units(self.axis, self.sizes)

    @property
    def parameters_per_unit(self) -> int:
        """What leaves with one unit, biases included."""
        return unit_cost((matrix.spec for matrix in self.weights.values()), self.sizes, self.axis)

    @property
    def attention(self) -> bool:
        """The units are heads, and not channels of the MLP."""
        return self.axis in axes.PARENT or self.axis in axes.PARENT.values()

    @property
    def unit_of_column(self) -> Int[Tensor, " column"]:
        """The unit that each input channel of the reader belongs to."""
        return self.units_along(self.reader)

    def units_along(self, matrix: Matrix) -> Int[Tensor, " size"]:
        """The unit of each position along the matrix's unit dimension; -1 where a position belongs to none."""
        index = axes.unit_index(matrix.spec.dims[matrix.unit_dim(self.axis)], self.sizes, self.axis)
        return index.to(matrix.value.device)

    @property
    def columns_per_unit(self) -> int:
        return len(self.unit_of_column) // self.num_units

    def reduce(self, columns: Float[Tensor, " column"], how: Reduction) -> Float[Tensor, " unit"]:
        """One value per unit from one per input channel of the reader."""
        if how == "l2":
            return self.add_up(columns.square(), self.unit_of_column).sqrt()
        total = self.add_up(columns, self.unit_of_column)
        return total / self.columns_per_unit if how == "mean" else total

    def add_up(self, values: Float[Tensor, " size"], units: Int[Tensor, " size"]) -> Float[Tensor, " unit"]:
        """Sum the values of each unit; what belongs to none (-1) is left out."""
        inside = units >= 0
        total = torch.zeros(self.num_units, dtype=torch.float64, device=values.device)
        return total.index_add_(0, units[inside], values[inside].double())
