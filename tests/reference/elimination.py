"""Greedy elimination the slow way: every candidate of every step is a fresh ridge regression on the whole calibration set."""

import torch
from torch import Tensor

from tests.reference.least_squares import regression


def loss(w: Tensor, x: Tensor, f: Tensor, drop: Tensor, lam: float) -> float:
    """tr(F D H D^T), N H = X^T X + lam I, of the reader that least squares leaves when the columns `drop` leave."""
    keep = [j for j in range(w.shape[1]) if j not in set(drop.tolist())]
    change = -w.clone()
    change[:, keep] += regression(w, x, keep, lam)
    second = (x.T @ x + lam * torch.eye(x.shape[1], dtype=x.dtype)) / len(x)
    return float(torch.trace(f @ change @ second @ change.T))


def greedy(w: Tensor, x: Tensor, f: Tensor, unit_of_column: Tensor, lam: float, rows: int = 1) -> tuple[list[int], list[float]]:
    """(order of the units, loss after each has left)."""
    number = int(unit_of_column.max()) + 1
    gone: list[int] = []
    losses = []
    while len(gone) < number:
        taken = [u * rows // number for u in gone[len(gone) // rows * rows :]]
        trials = {
            u: loss(w, x, f, torch.isin(unit_of_column, torch.tensor([*gone, u])).nonzero().flatten(), lam)
            for u in range(number)
            if u not in gone and u * rows // number not in taken
        }
        best = min(trials, key=trials.__getitem__)
        gone.append(best)
        losses.append(trials[best])
    return gone, losses
