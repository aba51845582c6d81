"""Ridge regression of what a matrix's output lacks on the inputs that it has, the ridge chosen on tokens that were held out.

    min over D of  sum_t ||r_t - D x_t||^2 + lam ||D||^2        D = B (G + lam I)^-1,   G = sum_t x x^T,  B = sum_t r x^T

D is added to the matrix, so the ridge pulls towards the matrix as it was. With an intercept, x and r are centred. lam is a
fraction of what is `typical` of G's diagonal: the one of `RIDGES` whose D, fitted without the held-out tokens, errs least on
them; then D is fitted to all. If none errs less than D = 0, that is what it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.gram import GramAccumulator, typical
from secateur.statistics.precision import full_float32

RIDGES = (1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, math.inf)
USUAL = 0.01
"""Where the search for the ridge begins, and what is taken where no tokens are held out."""
ROWS = 512
TRIED = 512
"""Outputs of a matrix, evenly spaced, that the ridge is chosen by: all of them would cost as much for each ridge as the solution."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """`change`: D, float64. `intercept`: what is added to the bias, zero without one. `error`: of the held-out tokens, relative
    to D = 0; NaN if none were held out."""

    change: Float[Tensor, "out column"]
    intercept: Float[Tensor, " out"]
    ridge: float
    error: float


class Sums:
    """G, B and the sums of x and r over some tokens: float32 products of at most 512 tokens, added in float64."""

    def __init__(self, columns: int, outs: int, device: torch.device) -> None:
        self._gram = GramAccumulator(columns, device)
        self.cross = torch.zeros(outs, columns, dtype=torch.float64, device=device)
        self.x = torch.zeros(columns, dtype=torch.float64, device=device)
        self.r = torch.zeros(outs, dtype=torch.float64, device=device)
        self.squares = torch.zeros(outs, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, x: Float[Tensor, "token column"], r: Float[Tensor, "token out"]) -> None:
        self._gram.update(x)
        self.count += len(x)
        self.x += x.sum(0, dtype=torch.float64)
        self.r += r.sum(0, dtype=torch.float64)
        self.squares += r.double().square().sum(0)
        with full_float32():
            for tokens in range(0, len(x), ROWS):
                some = x[tokens : tokens + ROWS]
                for at in range(0, r.shape[1], ROWS):
                    self.cross[at : at + ROWS] += r[tokens : tokens + ROWS, at : at + ROWS].mT @ some

    def finish(self) -> None:
        """No more tokens come: the Gram matrix takes its final form."""
        self.gram = self._gram.result().matrix
        del self._gram

    def add(self, other: "Sums") -> None:
        """Take in the tokens of another sum, finished as this one is."""
        for mine, its in zip(self._all(), other._all(), strict=True):
            mine += its
        self.count += other.count

    def _all(self) -> tuple[Tensor, ...]:
        return self.gram, self.cross, self.x, self.r, self.squares


@dataclass(kw_only=True)
class Regression:
    """One input, and the outputs of one or several matrices that read it: `parts` are their numbers of outputs, in order."""

    columns: int
    parts: Sequence[int]
    intercept: bool
    device: torch.device
    fit: Sums = field(init=False)
    held: Sums = field(init=False)
    _shift: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.fit, self.held = (Sums(self.columns, sum(self.parts), self.device) for _ in range(2))

    def update(self, x: Float[Tensor, "token column"], r: Float[Tensor, "token out"], held: Bool[Tensor, " token"]) -> None:
        """`held`: tokens that choose the ridge."""
        wide = torch.promote_types(x.dtype, torch.float32)
        x, r = x.to(wide), r.to(wide)
        if self.intercept:
            # A constant far from zero would drown what varies around it in rounding.
            self._shift = x.mean(0) if self._shift is None else self._shift
            x = x - self._shift
        for sums, mask in ((self.fit, ~held), (self.held, held)):
            if mask.any():
                sums.update(x[mask], r[mask])

    def solve(self, ridge: float | None = None) -> list[Fitted]:
        """The change of each part; `ridge` instead of the one that the held-out tokens choose. The sums are used up."""
        self.fit.finish()
        self.held.finish()
        parts = torch.arange(sum(self.parts), device=self.device).split(list(self.parts))
        if ridge is not None or not self.held.count or not self.fit.count:
            chosen = [(USUAL if ridge is None else ridge, math.nan)] * len(parts)
        else:
            errors = self._errors(parts)
            chosen = [lowest(lambda lam, at=at: errors(lam)[at]) for at in range(len(parts))]  # type: ignore[misc]
        self.fit.add(self.held)
        del self.held
        mean_x, mean_r = self._means(self.fit)
        out = []
        for part, (lam, error) in zip(parts, chosen, strict=True):
            change = self._change(self.fit, lam, part)
            shifted = mean_x + self._shift.double() if self._shift is not None else mean_x
            out.append(Fitted(change=change, intercept=mean_r[part] - change @ shifted, ridge=lam, error=error))
        return out

    def _means(self, sums: Sums) -> tuple[Tensor, Tensor]:
        scale = 1 / max(sums.count, 1) if self.intercept else 0.0
        return sums.x * scale, sums.r * scale

    def _errors(self, parts: Sequence[Tensor]) -> Callable[[float], list[float]]:
        """Ridge -> each part's squared error of the held-out tokens over that of D = 0, by `TRIED` of its outputs."""
        known: dict[float, list[float]] = {}
        some = [part[torch.linspace(0, len(part) - 1, min(TRIED, len(part))).long()] for part in parts]
        outs, sizes = torch.cat(some), [len(part) for part in some]
        mean_x, mean_r = self._means(self.fit)  # not the held-out tokens' own
        mean_r, held = mean_r[outs], self.held
        cross = held.cross[outs] - torch.outer(held.r[outs], mean_x) - torch.outer(mean_r, held.x - held.count * mean_x)
        base = held.squares[outs] - 2 * mean_r * held.r[outs] + held.count * mean_r.square()

        def errors(lam: float) -> list[float]:
            if lam not in known:
                change = self._change(self.fit, lam, outs)
                rows = base.clone()
                rows -= 2 * (change * cross).sum(1)
                rows += self._energy(change, mean_x)
                sums = zip(rows.split(sizes), base.split(sizes), strict=True)
                known[lam] = [float(error.sum() / before.sum().clamp_min(1e-300)) for error, before in sums]
            return known[lam]

        return errors

    def _energy(self, change: Tensor, mean_x: Tensor) -> Float[Tensor, " out"]:
        """sum over the held-out tokens of (D (x - mean))^2, for each output."""
        total = torch.zeros(len(change), dtype=torch.float64, device=self.device)
        for at in range(0, self.columns, ROWS):
            rows = slice(at, at + ROWS)
            total += ((change @ self._centred(self.held, rows, mean_x).mT) * change[:, rows]).sum(1)
        return total

    def _centred(self, sums: Sums, rows: slice, mean: Tensor) -> Float[Tensor, "row column"]:
        """Rows of the Gram matrix of x - mean, float64."""
        out = sums.gram[rows].to(torch.float64, copy=True)
        if self.intercept:
            out -= torch.outer(sums.x[rows] - sums.count * mean[rows], mean) + torch.outer(mean[rows], sums.x)
        return out

    def _change(self, sums: Sums, lam: float, part: Int[Tensor, " out"]) -> Float[Tensor, "out column"]:
        """B (G + lam I)^-1 of some outputs, float64. Raises the ridge while G is not positive definite."""
        mean_x, mean_r = self._means(sums)
        cross = sums.cross[part] - torch.outer(mean_r[part], sums.x)
        while lam < math.inf:
            matrix = torch.empty(self.columns, self.columns, dtype=torch.float64, device=self.device)
            for at in range(0, self.columns, ROWS):
                matrix[at : at + ROWS] = self._centred(sums, slice(at, at + ROWS), mean_x)
            diagonal = matrix.diagonal()
            if not diagonal.isfinite().all():
                raise UserError("the inputs of a matrix that is refitted hold NaN or infinity. Compute in bf16 or fp32.")
            diagonal += lam * typical(diagonal) + torch.finfo(torch.float64).tiny
            # The matrix is symmetric: its transpose is a column-major view of it, which is factorised in place.
            factor, info = matrix.mT, torch.empty(0, dtype=torch.int32, device=self.device)
            torch.linalg.cholesky_ex(factor, out=(factor, info))
            if not int(info):
                return torch.cholesky_solve(cross.mT, factor).mT
            del matrix, diagonal, factor
            lam = max(10 * lam, 1e-10) if lam < 1e6 else math.inf
        return torch.zeros_like(cross)


def lowest(error: Callable[[float], float]) -> tuple[float, float]:
    """The ridge of least error and that error, walking down from the usual one; errors are taken to have one minimum.

    Never a ridge that errs more than no change at all.
    """
    at = RIDGES.index(USUAL)
    for step in (1, -1):
        while 0 <= at + step < len(RIDGES) and error(RIDGES[at + step]) < error(RIDGES[at]):
            at += step
    return (math.inf, 1.0) if error(RIDGES[at]) > 1 else (RIDGES[at], error(RIDGES[at]))
