"""Least squares from the activations themselves: an augmented regression, no Gram matrix and no normal equations."""

from collections.abc import Sequence

import torch
from torch import Tensor


def regression(w: Tensor, x: Tensor, keep: Sequence[int], lam: float) -> Tensor:
    """argmin_V ||x_K V^T - x W^T||^2 + lam ||V - W_K||^2, as ordinary least squares on rows sqrt(lam) I appended to x_K."""
    keep = list(keep)
    x_k = torch.cat([x[:, keep], lam**0.5 * torch.eye(len(keep), dtype=x.dtype)])
    y = torch.cat([x @ w.T, lam**0.5 * w[:, keep].T])
    return torch.linalg.lstsq(x_k, y, driver="gelsd").solution.T


def regression_with_intercept(w: Tensor, x: Tensor, keep: Sequence[int], lam: float) -> tuple[Tensor, Tensor]:
    """The same with a constant column that the ridge does not touch: (V, bias that is added to the original one)."""
    keep = list(keep)
    size = len(keep)
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    pull = torch.cat([lam**0.5 * torch.eye(size, dtype=x.dtype), torch.zeros(size, 1, dtype=x.dtype)], dim=1)
    x_k = torch.cat([torch.cat([x[:, keep], ones], dim=1), pull])
    y = torch.cat([x @ w.T, lam**0.5 * w[:, keep].T])
    found = torch.linalg.lstsq(x_k, y, driver="gelsd").solution.T
    return found[:, :-1], found[:, -1]
