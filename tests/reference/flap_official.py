"""FLAP as its released code has it, to compare with numbers that code produced. No good estimator: see docs/papers/flap.md.

The batch *mean* is divided by the number of samples so far, so the running mean is too small by the batch size, and the
first batch never enters the fluctuation.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def fluctuation(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(F, M), each [position, channel], from batches [sample, position, channel] of a reader's input."""
    seen, f, m = 0, torch.tensor(0.0), torch.tensor(0.0)
    for x in batches:
        size = len(x)
        new = m * seen / (seen + size) + x.mean(0) / (seen + size)
        if seen:
            products = (x - new.mean(0)) * (x - m.mean(0))
            f = f * (seen - 1) / (seen + size - 1) + products.sum(0) / (seen + size)
        else:
            f = torch.zeros_like(new)
        m, seen = new, seen + size
    return f, m


def adaptive_threshold(scores: list[float], weights: list[float], ratio: float) -> list[bool]:
    """AL-AM, steps 3 to 5: which units are strictly above the score where the cumulative weight is nearest to (1 - ratio)."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    wanted, total = (1 - ratio) * sum(weights), 0.0
    distances = []
    for i in order:
        total += weights[i]
        distances.append(abs(total - wanted))
    threshold = scores[order[distances.index(min(distances))]]
    return [s > threshold for s in scores]
