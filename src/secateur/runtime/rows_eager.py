"""Products with some rows of a matrix, which are copied first. What rows_triton.py computes without the copy, and its oracle."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def to_rows(
    x: Float[Tensor, "*tokens other"],
    weight: Float[Tensor, "row other"],
    index: Int[Tensor, " kept"],
    bias: Float[Tensor, " row"] | None = None,
) -> Float[Tensor, "*tokens kept"]:
    """y[t, k] = sum over d of x[t, d] W[index[k], d] + b[index[k]]: the rows are outputs."""
    return functional.linear(x, weight.index_select(0, index), None if bias is None else bias.index_select(0, index))


def from_rows(
    x: Float[Tensor, "*tokens kept"],
    weight: Float[Tensor, "row other"],
    index: Int[Tensor, " kept"],
    bias: Float[Tensor, " other"] | None = None,
) -> Float[Tensor, "*tokens other"]:
    """y[t, o] = sum over k of x[t, k] W[index[k], o] + b[o]: the rows are inputs."""
    return functional.linear(x, weight.index_select(0, index).mT, bias)
