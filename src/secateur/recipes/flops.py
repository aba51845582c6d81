"""Arithmetic of one token, from the tables."""

from collections.abc import Sequence
from math import prod

from secateur import axes
from secateur.axes import Sizes
from secateur.families.binding import Binding


def flops_per_token(binding: Binding, layers: Sequence[Sizes], *, head: bool = True) -> int:
    """Two for each element of every matrix a token is multiplied with; attention scores and norms are not counted."""
    inner = sum(prod(axes.shape(s, sizes)) for sizes in layers for s in binding.layer.values() if len(s.dims) == 2)
    last = prod(axes.shape(binding.outer[binding.embedding], binding.sizes)) if head else 0
    return 2 * (inner + last)
