"""Gradient of the loss with respect to unit gates: every unit's activation multiplied by m, at m = 1.

    t_{n,u} = dL_n / dm_u = sum over tokens and channels of u of a . dL_n/da

a is the input of the axis's reader, L_n the summed loss of sample n. To first order -t is what removing the unit changes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.statistic import not_finite

COLUMNS = 1024  # channels at a time


class GateGradient(NamedTuple):
    """Sums over samples, per unit of one axis, float64, in nats. A monoid over samples."""

    samples: int
    signed: Float[Tensor, " unit"]
    """sum_n t_n"""
    absolute: Float[Tensor, " unit"]
    """sum_n |t_n|"""
    squares: Float[Tensor, " unit"]
    """sum_n t_n^2"""

    kind = "gate-gradient"  # type: ignore[misc]

    @classmethod
    def of(cls, t: Float[Tensor, "sample unit"]) -> "GateGradient":
        t = t.double()
        return cls(len(t), t.sum(0), t.abs().sum(0), t.square().sum(0))

    def __add__(self, other: "GateGradient") -> "GateGradient":  # type: ignore[override]
        return GateGradient(
            self.samples + other.samples, self.signed + other.signed, self.absolute + other.absolute, self.squares + other.squares
        )  # fmt: skip

    def to_tensors(self) -> dict[str, Tensor]:
        samples = torch.tensor(self.samples, dtype=torch.int64)
        return {"samples": samples, "signed": self.signed, "absolute": self.absolute, "squares": self.squares}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "GateGradient":
        return cls(int(tensors["samples"]), tensors["signed"], tensors["absolute"], tensors["squares"])

    def finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in (self.signed, self.absolute, self.squares))

    def require_finite(self, where: str) -> "GateGradient":
        if not self.finite():
            raise UserError(not_finite(self.kind, where))
        return self


def column_gates(
    a: Float[Tensor, "sample token column"], gradient: Float[Tensor, "sample token column"]
) -> Float[Tensor, "sample column"]:
    """Sum over tokens of a . dL/da, float64; products in float32, or in float64 where the tensors are."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    parts = []
    for at in range(0, a.shape[2], COLUMNS):
        x, g = a[..., at : at + COLUMNS].to(wide), gradient[..., at : at + COLUMNS].to(wide)
        parts.append(torch.einsum("ntc,ntc->nc", x, g).double())
    return torch.cat(parts, dim=1)


def unit_gates(
    columns: Float[Tensor, "sample column"], unit_of_column: Int[Tensor, " column"], num_units: int
) -> Float[Tensor, "sample unit"]:
    """Gates of units from gates of their columns; -1 marks a column that belongs to none."""
    inside = unit_of_column >= 0
    total = torch.zeros(len(columns), num_units, dtype=torch.float64, device=columns.device)
    return total.index_add_(1, unit_of_column[inside], columns[:, inside])
