"""From gradients of unit gates to gradients of weights: the part that gates can tell. This is ours; no paper is followed.

A gate m_u scales the columns of its unit in the reader, so t_u = <g, W_u>, with W_u the reader's matrix on these columns and zero
elsewhere. The orthogonal projection of g onto the span of the W_u is

    g_ij = t_u W_ij / ||W_u||^2        for j a column of u

and zero on the other matrices, whose gradients the gates say nothing of that is not said by this.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.statistics.gate_gradient import GateGradient
from secateur.statistics.moments import Moments
from secateur.statistics.weight_gradient import (
    Lines,
    SampleSums,
    WeightFisher,
    WeightGradient,
    reduce_fisher,
    reduce_gradient,
    row_blocks,
)


def lifted_gradient(
    weight: Float[Tensor, "out column"], unit: Int[Tensor, " column"], gates: GateGradient, inputs: Moments
) -> WeightGradient:
    """Of a reader. `unit`: whose gate each column has."""
    wide, scale = _wide(weight), gates.signed[unit] * _inverse_norms(weight, unit)
    return reduce_gradient(weight, lambda rows: weight[rows].to(wide) * scale.to(wide), inputs, by_column=True)


def lifted_fisher(
    weight: Float[Tensor, "out column"], unit: Int[Tensor, " column"], gates: GateGradient, tokens: int
) -> WeightFisher:
    """Of a reader, of the samples' mean token losses."""
    wide, inverse = _wide(weight), _inverse_norms(weight, unit)
    signed, absolute = (t[unit] * inverse for t in (gates.signed, gates.absolute))
    squares = gates.squares[unit] * inverse.square()

    def sums(rows: slice) -> SampleSums:
        w = weight[rows].to(wide)
        return SampleSums(w * signed.to(wide), w.abs() * absolute.to(wide), w.square() * squares.to(wide))

    return reduce_fisher(weight, sums, gates.samples, tokens, by_column=True)


def no_gradient(lines: int) -> WeightGradient:
    zero = torch.zeros(lines, dtype=torch.float64)
    return WeightGradient(zero, zero, zero, zero)


def no_fisher(lines: int) -> WeightFisher:
    zero = torch.zeros(lines, dtype=torch.float64)
    return WeightFisher(zero, zero, zero, zero)


def _inverse_norms(weight: Float[Tensor, "out column"], unit: Int[Tensor, " column"]) -> Float[Tensor, " column"]:
    """1 / ||W_u||^2 of each column's unit, float64; zero where W_u is."""
    norms = torch.zeros(int(unit.max()) + 1, dtype=torch.float64, device=weight.device)
    norms = norms.index_add_(0, unit, _column_norms(weight))[unit]
    return torch.where(norms > 0, 1 / norms, 0)


def _column_norms(weight: Float[Tensor, "out column"]) -> Float[Tensor, " column"]:
    """sum_i W_ij^2"""
    lines = Lines(weight, by_column=True)
    total = lines.zeros()
    for rows in row_blocks(weight):
        lines.add(total, rows, weight[rows].double().square())
    return total


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
