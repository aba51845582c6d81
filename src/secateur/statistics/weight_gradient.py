"""Gradient of the loss with respect to the weights of one matrix, reduced to the matrix's rows or columns as soon as it is known.

A *line* is a row of a matrix whose outputs belong to units (q, k, v, gate, up) and a column of one that reads them (o, down). With
p = g_ij W_ij, x_j the matrix's input and sums over the line's elements:

    signed    sum p                       first-order change of the loss when the line leaves, up to the sign
    absolute  sum |p|
    product   sum |p| ||x_j||_2           MINI-LLM's feature map sensitivity, product form
    average   sum |p E[x_j]|              the same, mean form

g is the gradient of the *summed* loss over the whole calibration set, so none of these but `signed` adds up over parts of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.moments import Moments
from secateur.statistics.statistic import not_finite

ELEMENTS = 1 << 20  # of a matrix at a time
ROWS = 1024  # of a product at a time


class WeightGradient(NamedTuple):
    """Per line of one matrix, float64. Not a monoid: made of the whole calibration set at once."""

    signed: Float[Tensor, " line"]
    absolute: Float[Tensor, " line"]
    product: Float[Tensor, " line"]
    average: Float[Tensor, " line"]

    kind = "weight-gradient"  # type: ignore[misc]

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(zip(self._fields, self, strict=True))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "WeightGradient":
        return cls(**tensors)

    def finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in self)

    def require_finite(self, where: str) -> "WeightGradient":
        if not self.finite():
            raise UserError(not_finite(self.kind, where))
        return self


class WeightFisher(NamedTuple):
    """Per line of one matrix, float64, from the gradients g_n of each sample's *mean* token loss and their mean g. Not a monoid.

    F_ij = mean_n g_n,ij^2 is the diagonal of the empirical Fisher matrix.
    """

    second: Float[Tensor, " line"]
    """sum W^2 F"""
    mixed: Float[Tensor, " line"]
    """sum |g W - W^2 F / 2|"""
    l1: Float[Tensor, " line"]
    """sum |W| sum_n |g_n|"""
    l2: Float[Tensor, " line"]
    """sum |W| sqrt(sum_n g_n^2)"""

    kind = "weight-fisher"  # type: ignore[misc]

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(zip(self._fields, self, strict=True))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "WeightFisher":
        return cls(**tensors)

    def finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in self)

    def require_finite(self, where: str) -> "WeightFisher":
        if not self.finite():
            raise UserError(not_finite(self.kind, where))
        return self


class SampleSums(NamedTuple):
    """Over the gradients g_n of every sample's summed loss, element by element; float32, or float64 where they are."""

    signed: Float[Tensor, "row column"]
    absolute: Float[Tensor, "row column"]
    squares: Float[Tensor, "row column"]

    @classmethod
    def of(cls, gradients: Iterable[Float[Tensor, "row column"]]) -> "SampleSums":
        """Of at least one sample, one after another."""
        sums = None
        for g in gradients:
            g = g.to(torch.promote_types(g.dtype, torch.float32))
            sums = sums or cls(*(torch.zeros_like(g) for _ in cls._fields))
            sums.signed.add_(g)
            sums.absolute.add_(g.abs())
            sums.squares.addcmul_(g, g)
        assert sums is not None
        return sums


# Rows of a matrix -> the same rows of its gradient, or of sums over its samples' gradients.
Rows = Callable[[slice], Float[Tensor, "row column"]]
Sums = Callable[[slice], SampleSums]


def row_blocks(weight: Float[Tensor, "out column"]) -> Iterator[slice]:
    step = max(1, ELEMENTS // weight.shape[1])
    yield from (slice(at, min(at + step, len(weight))) for at in range(0, len(weight), step))


class Lines:
    """Adds up the elements of a matrix along its lines."""

    def __init__(self, weight: Float[Tensor, "out column"], by_column: bool) -> None:
        self.by_column = by_column
        self.number, self.device = weight.shape[1 if by_column else 0], weight.device

    def zeros(self) -> Float[Tensor, " line"]:
        return torch.zeros(self.number, dtype=torch.float64, device=self.device)

    def add(self, total: Float[Tensor, " line"], rows: slice, elements: Float[Tensor, "row column"]) -> None:
        """Add the elements of some rows to the lines they belong to.

        Float32 elements are summed in float32 within a block, pairwise as torch does, and blocks in float64: five times as fast as
        converting every element, for an error of about 1e-7 of the sum of absolute values.
        """
        if self.by_column:
            total += elements.sum(0)
        else:
            total[rows] += elements.sum(1)


def reduce_gradient(weight: Float[Tensor, "out column"], gradient: Rows, inputs: Moments, *, by_column: bool) -> WeightGradient:
    """The lines of one matrix, outputs first. Elements are float32, or float64 where the gradient is; sums are float64."""
    norm, mean = inputs.sum_of_squares.sqrt().to(weight.device), inputs.mean.abs().to(weight.device)
    lines = Lines(weight, by_column)
    signed, absolute, product, average = (lines.zeros() for _ in range(4))
    for rows in row_blocks(weight):
        g = gradient(rows)
        p = weight[rows].to(g.dtype) * g
        lines.add(signed, rows, p)
        lines.add(absolute, rows, p.abs_())
        if not by_column:
            product[rows] = (p @ norm.to(p.dtype)).double()
            average[rows] = (p @ mean.to(p.dtype)).double()
    if by_column:
        product, average = absolute * norm, absolute * mean
    return WeightGradient(signed, absolute, product, average)


def reduce_fisher(
    weight: Float[Tensor, "out column"], sums: Sums, samples: int, tokens: int, *, by_column: bool
) -> WeightFisher:
    """`tokens` of each of the `samples`, of which all but one are predicted."""
    lines, mean = Lines(weight, by_column), 1 / (tokens - 1)
    second, mixed, l1, l2 = (lines.zeros() for _ in range(4))
    for rows in row_blocks(weight):
        signed, absolute, squares = sums(rows)
        w = weight[rows].to(signed.dtype)
        fisher = w.square() * (squares * (mean**2 / samples))
        lines.add(second, rows, fisher)
        lines.add(mixed, rows, (w * (signed * (mean / samples)) - fisher / 2).abs_())
        lines.add(l1, rows, w.abs() * (absolute * mean))
        lines.add(l2, rows, w.abs() * (squares.sqrt() * mean))
    return WeightFisher(second, mixed, l1, l2)


class WeightGradientAccumulator:
    """Forms one matrix's gradient from its inputs and its outputs' gradients: one matrix in float32 (float64 if the walk is)."""

    def __init__(self, weight: Float[Tensor, "out column"], *, by_column: bool) -> None:
        self._weight, self._by_column = weight, by_column
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._total = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        zero = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
        self._inputs = Moments(0, zero, zero)

    def update(self, x: Float[Tensor, "sample token column"], gradient: Float[Tensor, "sample token out"]) -> None:
        """Of a few whole samples. `gradient` is of the summed loss with respect to the matrix's output."""
        self._inputs += Moments.of(x)
        x, gradient = x.flatten(0, 1), gradient.flatten(0, 1)
        for at in range(0, len(self._weight), ROWS):
            rows = slice(at, at + ROWS)
            self._total[rows].add_(gradient[:, rows].mT @ x)

    def result(self) -> WeightGradient:
        return reduce_gradient(self._weight, lambda rows: self._total[rows], self._inputs, by_column=self._by_column)
