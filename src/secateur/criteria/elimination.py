"""Greedy elimination of a reader's columns: which unit costs least to lose once the kept ones make up for it, again and again.

    loss(D) = tr(F D H D^T),  D the change of the reader W        H of its input, F of what comes after it (I: plain least squares)
    D       = -W_u M [H^-1]_u:          M = ([H^-1]_uu)^-1        the best the kept columns can do, whatever F is
    cost(u) = tr(F W_u M W_u^T)                                   and H^-1 <- H^-1 - [H^-1]_:u M [H^-1]_u:

Optimal brain surgeon with units for weights: https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html.
W is never updated: with A = W^T F W and B = H^-1 the cost is tr(M A_uu), and removing u changes A and B by

    R = L^-1 B_u:,  K = L^-1 A_uu L^-T,  E = L^-1 A_u: - K R / 2          where L L^T = B_uu
    B <- B - R^T R,     A <- A - R^T E - E^T R,     cost(u) = tr K

Rows R and E are kept until there are many, and only the diagonal blocks follow every step, as in blocked pivoted Cholesky
factorisation: the order is that of one-at-a-time elimination, at the price of matrix products.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.criteria.unit import Matrix
from secateur.errors import UserError
from secateur.statistics.gram import Gram, typical
from secateur.statistics.precision import full_float32

PENDING = 64
"""Rows that are kept before the matrices are updated."""
SHRINK = 0.8
"""The matrices are cut to what is left when no more than this fraction of them is."""
ROWS = 512
WIDE = 8192
"""Columns up to which float64 is used: two such matrices are 1 GiB."""
SINGULAR = 1e-12
"""An input of which less than this fraction is news to the inputs before it makes an inverse of nothing but rounding."""
ATTEMPTS = 4
"""The ridge is raised a hundredfold, from 1e-10 on, this many times at most when the Cholesky factorisation fails."""


@dataclass(frozen=True, kw_only=True)
class Path:
    """All units of a reader in the order in which they leave, to the last."""

    order: Int[Tensor, " unit"]
    cost: Float[Tensor, " unit"]
    """By how much the loss rises as each leaves, float64; of the dimension of tr(F W H W^T)."""


@dataclass(frozen=True, kw_only=True)
class Inverse:
    """H^-1 of H = G / N + lam I, lam a fraction of what is `typical` of G / N's diagonal."""

    matrix: Float[Tensor, "column column"]
    dead: Int[Tensor, " dead"]
    """Inputs that are always zero. Here they are independent of all others."""
    lam: float

    @classmethod
    def of(cls, gram: Gram, ridge: float) -> "Inverse":
        """In float64. Raises the ridge while H is not positive definite; `UserError` if that does not help."""
        diagonal = gram.matrix.diagonal()
        dead = (diagonal <= 0).nonzero().flatten()
        for _ in range(ATTEMPTS + 1):
            matrix = gram.matrix.to(torch.float64, copy=True).div_(gram.count)
            diagonal = matrix.diagonal()
            lam = ridge * float(typical(diagonal))
            diagonal += lam
            diagonal[dead] = 1
            least = SINGULAR * diagonal
            # The matrix is symmetric, so its transpose is a column-major view of it, which is worked on in place.
            factor, info = matrix.mT, torch.empty(0, dtype=torch.int32, device=matrix.device)
            torch.linalg.cholesky_ex(factor, out=(factor, info))
            if not int(info) and bool((factor.diagonal().square() > least).all()):
                return cls(matrix=torch.cholesky_inverse(factor, out=factor).mT, dead=dead, lam=lam)
            del matrix, diagonal, factor  # before the next attempt takes as much
            ridge = max(100 * ridge, 1e-10)
        raise UserError(
            f"the Gram matrix of a reader's input is not positive definite, even with a ridge of {ridge / 100:g}. "
            "Calibrate with more text, or use another method."
        )

    def without_matrix(self) -> "Inverse":
        return replace(self, matrix=self.matrix[:0, :0].clone())


def weighted(reader: Matrix, metric: Float[Tensor, "out out"] | None, dtype: torch.dtype) -> Float[Tensor, "column column"]:
    """W^T F W of a reader in the given type, F = I for None; beside the result some rows of W and one of their products."""
    w = reader.oriented
    total = torch.zeros(w.shape[1], w.shape[1], dtype=dtype, device=w.device)
    with full_float32():
        for at in range(0, len(w), ROWS):
            rows = w[at : at + ROWS].to(dtype)
            product = rows
            if metric is not None:
                product = torch.zeros_like(rows)
                for start in range(0, len(w), ROWS):
                    product.addmm_(metric[at : at + ROWS, start : start + ROWS].to(dtype), w[start : start + ROWS].to(dtype))
            total.addmm_(rows.mT, product)
    return total


def product(reader: Matrix, v: Float[Tensor, "column n"]) -> Float[Tensor, "out n"]:
    """W V in float64, without a float64 copy of W."""
    return torch.cat([rows.double() @ v for rows in reader.oriented.split(ROWS)])


def eliminate(
    a: Float[Tensor, "column column"],
    b: Float[Tensor, "column column"],
    unit_of_column: Int[Tensor, " column"],
    *,
    rows: int = 1,
    pending: int = PENDING,
) -> Path:
    """The greedy path over all units, which all have equally many columns. `a` and `b` are overwritten.

    `rows`: the units are this many rows of equal length, one after another, and one of each row leaves before a second of any
    does, as the ragged axis `group` wants it.
    """
    state = _State(a, b, unit_of_column, pending)
    number = state.alive.numel()
    row = torch.arange(number, device=a.device) // (number // rows)
    waiting = torch.ones(rows, dtype=torch.bool, device=a.device)
    order, costs = [], []
    with full_float32():
        for _ in range(number):
            cost = state.costs().masked_fill(~waiting[row[state.units]], torch.inf)
            at = int(cost.argmin())
            unit = int(state.units[at])
            order.append(unit)
            costs.append(state.remove(at))
            waiting[row[unit]] = False
            if not waiting.any():
                waiting[:] = True
    return Path(order=torch.tensor(order), cost=torch.tensor(costs, dtype=torch.float64))


class _State:
    """A and B before the pending rows R and E, and their true diagonal blocks. Removed units stay until the matrices shrink."""

    def __init__(self, a: Tensor, b: Tensor, unit_of_column: Tensor, pending: int) -> None:
        number = int(unit_of_column.max()) + 1
        self.a, self.b, self.size = a, b, len(unit_of_column) // number
        order = unit_of_column.argsort(stable=True)
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            self.a, self.b = a[order][:, order], b[order][:, order]
        self.units = torch.arange(number, device=a.device)
        self.alive = torch.ones(number, dtype=torch.bool, device=a.device)
        self.diagonals = [self._blocks(self.a), self._blocks(self.b)]
        self.limit = max(pending // self.size, 1) * self.size
        self._clear()

    def _clear(self) -> None:
        self.filled = 0
        self.r, self.e = (torch.empty(self.limit, len(self.a), dtype=self.a.dtype, device=self.a.device) for _ in range(2))

    def _blocks(self, x: Tensor) -> Tensor:
        """The diagonal blocks of a matrix, float64: [unit, column, column]."""
        n = self.size
        return torch.stack([x[i : i + n, i : i + n].double() for i in range(0, len(x), n)])

    def costs(self) -> Tensor:
        """tr((B_uu)^-1 A_uu) of every unit that is still in the matrices; infinite for those that left."""
        a, b = self.diagonals
        cost = (a / b).flatten() if self.size == 1 else torch.linalg.solve(b, a).diagonal(dim1=1, dim2=2).sum(1)
        return cost.masked_fill_(~self.alive, torch.inf)

    def remove(self, at: int) -> float:
        """Remove a unit; what it cost comes back."""
        columns, new = slice(at * self.size, (at + 1) * self.size), slice(self.filled, self.filled + self.size)
        r, e = self.r[: self.filled], self.e[: self.filled]
        rows_a = self.a[columns] - r[:, columns].mT @ e - e[:, columns].mT @ r
        rows_b = self.b[columns] - r[:, columns].mT @ r
        factor = torch.linalg.cholesky(self.diagonals[1][at])
        half = torch.linalg.solve_triangular(factor, self.diagonals[0][at], upper=False)
        k = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        factor = factor.to(r.dtype)
        self.r[new] = torch.linalg.solve_triangular(factor, rows_b, upper=False)
        self.e[new] = torch.linalg.solve_triangular(factor, rows_a, upper=False) - k.to(r.dtype) @ self.r[new] / 2
        self._follow(at, self.r[new].double(), self.e[new].double())
        self.filled = new.stop
        if self.filled == self.limit:
            self._flush()
        return max(float(k.trace()), 0.0)

    def _follow(self, at: int, r: Tensor, e: Tensor) -> None:
        """Bring the diagonal blocks up to date with the rows of the unit that leaves."""
        r, e = (x.view(self.size, -1, self.size) for x in (r, e))  # [row, unit, column]
        both = torch.einsum("run,rum->unm", r, e)
        self.diagonals[0] -= both + both.mT
        self.diagonals[1] -= torch.einsum("run,rum->unm", r, r)
        self.diagonals[0][at], self.diagonals[1][at] = 0, torch.eye(self.size)
        self.alive[at] = False

    def _flush(self) -> None:
        """Bring the matrices up to date, and cut them when much of them has left."""
        self.a.addmm_(torch.cat([self.r, self.e]).mT, torch.cat([self.e, self.r]), alpha=-1)
        self.b.addmm_(self.r.mT, self.r, alpha=-1)
        left = self.alive.nonzero().flatten()
        if 0 < len(left) <= SHRINK * len(self.alive):
            offsets = torch.arange(self.size, device=left.device)
            columns = (left[:, None] * self.size + offsets).flatten()
            self.a, self.b = cut(self.a, columns), cut(self.b, columns)
            self.units, self.alive = self.units[left], self.alive[left]
            self.diagonals = [x[left] for x in self.diagonals]
        self._clear()


def cut(x: Float[Tensor, "size size"], keep: Int[Tensor, " kept"]) -> Float[Tensor, "kept kept"]:
    """The rows and columns in `keep`, ascending, moved to the front of a contiguous matrix's own memory."""
    flat, width = x.view(-1), len(keep)
    for at in range(0, width, ROWS):
        rows = keep[at : at + ROWS]
        # A row moves to no later place than its own, so what has not been moved yet is not written over.
        flat[at * width : (at + len(rows)) * width] = x[rows].index_select(1, keep).flatten()
    return flat[: width * width].view(width, width)
