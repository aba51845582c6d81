"""The lower convex envelope of a cumulative cost: what makes choosing the cheapest step first the best choice under a budget."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def envelope(steps: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    """Slopes of the lower convex envelope of the running sum of equally wide steps: never descending, and of the same total."""
    blocks: list[tuple[float, int]] = []  # (sum, number of steps)
    for step in steps.tolist():
        total, many = step, 1
        while blocks and blocks[-1][0] * many >= total * blocks[-1][1]:
            before, also = blocks.pop()
            total, many = total + before, many + also
        blocks.append((total, many))
    return torch.cat([torch.full((many,), total / many, dtype=torch.float64) for total, many in blocks])


def ascending(slopes: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    """The slopes, strictly ascending: an equal one is the next larger float64, so that ranking gives the path's order."""
    out: list[float] = []
    for slope in slopes.tolist():
        out.append(max(slope, math.nextafter(out[-1], math.inf)) if out else slope)
    return torch.tensor(out, dtype=torch.float64)
