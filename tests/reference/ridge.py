"""Ridge regression from the activations themselves: an augmented regression in float64, no Gram matrix, no normal equations."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ridge_scale(x: Tensor) -> float:
    """Mean over the columns of sum x^2; but at most four times the (lower) median of those that are not zero."""
    energy = x.square().sum(0)
    live = sorted(float(e) for e in energy if e > 1e-10 * energy.mean())
    return min(float(energy.mean()), 4 * live[(len(live) - 1) // 2]) if live else 0.0


def ridge(x: Tensor, r: Tensor, lam: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
    """argmin over D, b of sum ||r_t - D x_t - b||^2 + lam s ||D||^2: D [out, column] and b, zero without an intercept.

    s is `ridge_scale` of x, or of x - mean with an intercept: a constant column beside x, which the ridge does not touch.
    """
    x, r = x.double(), r.double()
    columns = x.shape[1]
    scale = ridge_scale(x - x.mean(0) if intercept else x)
    pull = (lam * scale) ** 0.5 * torch.eye(columns, dtype=torch.float64)
    ones = torch.ones(len(x), int(intercept), dtype=torch.float64)
    left = torch.cat([torch.cat([x, ones], 1), torch.cat([pull, torch.zeros(columns, int(intercept), dtype=torch.float64)], 1)])
    right = torch.cat([r, torch.zeros(columns, r.shape[1], dtype=torch.float64)])
    found = torch.linalg.lstsq(left, right, driver="gelsd").solution.T
    return found[:, :columns], found[:, columns] if intercept else torch.zeros(r.shape[1], dtype=torch.float64)


def held_out_errors(x: Tensor, r: Tensor, held: Tensor, ridges: Sequence[float], *, intercept: bool) -> list[float]:
    """Squared error of the held-out tokens for each ridge, fitted without them, over that of D = 0. Infinity: D = 0."""
    x, r = x.double(), r.double()
    nothing = r[held] - (r[~held].mean(0) if intercept else 0)
    errors = []
    for lam in ridges:
        if lam == float("inf"):
            errors.append(1.0)
            continue
        change, shift = ridge(x[~held], r[~held], lam, intercept=intercept)
        errors.append(float((r[held] - x[held] @ change.T - shift).square().sum() / nothing.square().sum()))
    return errors
