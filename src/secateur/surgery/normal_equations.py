"""Least squares over the kept columns of a reader, in the memory of one square matrix of the kept size."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.gram import Gram, typical
from secateur.statistics.moments import Moments
from secateur.statistics.precision import full_float32

ROWS = 512
"""Rows of a matrix that are copied or converted at a time."""
OUTPUTS = 512
"""Right-hand sides at a time."""
ATTEMPTS = 5
"""The ridge is raised tenfold this many times at most when the Cholesky factorisation fails."""


@dataclass(frozen=True, kw_only=True)
class NormalEquations:
    """Blocks of the matrix G, or with `mean` of the centred G - N mu mu^T, which is never formed whole."""

    gram: Float[Tensor, "column column"]
    count: int
    mean: Float[Tensor, " column"] | None
    dead: Int[Tensor, " dead"]
    """Inputs that are always zero (centred: constant). They can say nothing, and their weights stay as they are."""

    @classmethod
    def of(cls, gram: Gram, moments: Moments | None) -> "NormalEquations":
        """Centred if `moments` are given. Raises `UserError` if the Gram matrix's diagonal is not finite."""
        diagonal = gram.matrix.diagonal().double()
        if not diagonal.isfinite().all():
            raise UserError(
                "the Gram matrix of a reader's input holds NaN or infinity. Calibrate in bf16 or fp32 instead of fp16."
            )
        if moments is None:
            return cls(gram=gram.matrix, count=gram.count, mean=None, dead=(diagonal <= 0).nonzero().flatten())
        assert moments.count == gram.count, f"moments of {moments.count} tokens, Gram matrix of {gram.count}"
        variance = diagonal - gram.count * moments.mean.square()
        # Below this the difference is the rounding of its two terms.
        dead = variance <= 8 * torch.finfo(gram.matrix.dtype).eps * diagonal
        return cls(gram=gram.matrix, count=gram.count, mean=moments.mean, dead=dead.nonzero().flatten())

    def block(
        self, rows: Int[Tensor, " row"], columns: Int[Tensor, " col"], dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "row col"]:
        """Entries of the matrix, centred in float64. Only the result is large: rows are copied `ROWS` at a time."""
        out = torch.empty(len(rows), len(columns), dtype=dtype, device=self.gram.device)
        for at in range(0, len(rows), ROWS):
            index = rows[at : at + ROWS]
            part = self.gram[index].index_select(1, columns)
            if self.mean is not None:
                part = part.double()
                part -= torch.outer(self.count * self.mean[index], self.mean[columns])
            part[torch.isin(index, self.dead)] = 0
            part[:, torch.isin(columns, self.dead)] = 0
            out[at : at + ROWS] = part
        return out

    def reconstruct(
        self, weight: Float[Tensor, "out column"], keep: Int[Tensor, " kept"], ridge: float
    ) -> Float[Tensor, "out kept"]:
        """W_K + W_D G_DK (G_KK + lam I)^-1, lam = ridge * typical(diag G_KK); float32, or float64 where the weight is.

        The matrix is factorised in float64. What follows is float32 where weight and matrix are: as exact as they are (an
        error of their own rounding's size), and the error of the output, least at the solution, feels it only squared. Raises
        `UserError` if no ridge within reason makes the matrix positive definite.
        """
        drop = complement(keep, weight.shape[1])
        kept = weight.index_select(1, keep).to(torch.promote_types(weight.dtype, torch.float32))
        dtype = torch.promote_types(kept.dtype, self.gram.dtype)
        right = torch.zeros(len(weight), len(keep), dtype=dtype, device=weight.device)  # W_D G_DK
        with full_float32():
            for index in drop.split(ROWS):
                right.addmm_(weight.index_select(1, index).to(dtype), self.block(index, keep, dtype))
            factor = self.factorise(keep, ridge).to(dtype)
            for at in range(0, len(weight), OUTPUTS):
                half = torch.linalg.solve_triangular(factor.mT, right[at : at + OUTPUTS], upper=True, left=False)
                kept[at : at + OUTPUTS] += torch.linalg.solve_triangular(factor, half, upper=False, left=False)
        return kept

    def factorise(self, keep: Int[Tensor, " kept"], ridge: float) -> Float[Tensor, "kept kept"]:
        """The lower Cholesky factor of G_KK + lam I. Raises the ridge while there is none."""
        for _ in range(ATTEMPTS + 1):
            matrix = self.block(keep, keep)
            diagonal = matrix.diagonal()
            diagonal += ridge * typical(diagonal)
            diagonal[torch.isin(keep, self.dead)] = 1
            # The matrix is symmetric, so its transpose is a column-major view of it, which is factorised in place.
            factor, info = matrix.mT, torch.empty(0, dtype=torch.int32, device=matrix.device)
            torch.linalg.cholesky_ex(factor, out=(factor, info))
            if not int(info):
                return factor
            del matrix, diagonal, factor
            ridge = max(ridge, 1e-7) * 10
        raise UserError(
            f"the Gram matrix of a reader's input is not positive definite, even with a ridge of {ridge / 10:g}. "
            "Calibrate with more text, or use --compensate bias or none."
        )


def complement(keep: Int[Tensor, " kept"], size: int) -> Int[Tensor, " dropped"]:
    """The positions that are not kept, ascending."""
    return torch.ones(size, dtype=torch.bool, device=keep.device).index_fill_(0, keep, False).nonzero().flatten()
