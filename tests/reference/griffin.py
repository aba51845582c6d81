"""GRIFFIN's statistic, number by number in float64."""

import math

import torch


def statistic(z: torch.Tensor, valid: torch.Tensor | None = None) -> list[float]:
    """s of each channel, of activations [sample, token, channel] without the padding."""
    total = [0.0] * z.shape[2]
    for i, sample in enumerate(z.double().tolist()):
        tokens = [row for t, row in enumerate(sample) if valid is None or bool(valid[i, t])]
        lengths = [math.sqrt(sum(x * x for x in row)) for row in tokens]
        for k in range(z.shape[2]):
            s = math.sqrt(sum((row[k] / n) ** 2 for row, n in zip(tokens, lengths, strict=True) if n))
            total[k] += s / math.sqrt(len(tokens)) if tokens else 0.0
    return total
