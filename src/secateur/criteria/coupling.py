"""One score per unit from one value per line of every coupled matrix.

A *line* is a row of a matrix whose outputs belong to units (q, k, v, gate, up) and a column of the one that reads them (o, down).

    S_u = sum over u's channels c of  reduce over coupled matrices m of  s_m[u, c]

so that `max` of a head asks channel by channel which matrix matters most, as LLM-Pruner does. That is defined where every
matrix has the same number of lines per unit. Under grouped queries a kv head has more lines in q and o than in k and v; there
each matrix is summed over its lines of the unit first: S_u = reduce over m of sum_c s_m[u, c]. `sum` and `mean` know no
difference. A fused matrix (qkv; gate and up) counts as the matrices it is made of, so scores do not depend on the storage.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from secateur import axes
from secateur.criteria.unit import CoupledGroup, Matrix
from secateur.errors import UserError

REDUCTIONS = ("sum", "mean", "max", "prod", "first")
MATRIX_NORMS = ("none", "mean", "l2")

Parts = Float[Tensor, "matrix unit channel"]
Lines = Callable[[Matrix], Float[Tensor, " line"]]


def couple(group: CoupledGroup, lines: Lines, *, reduction: str, matrix_norm: str = "none") -> Float[Tensor, " unit"]:
    """Score per unit, float64, in the unit of the lines (to the power of the number of matrices for `prod`).

    `reduction`: one of `REDUCTIONS`; `first` is the first matrix in the family's table: q, gate. `matrix_norm`: one of
    `MATRIX_NORMS`, what a matrix's lines are divided by before the matrices are put together: nothing, their mean or l2 norm.
    """
    matrices = group.matrices[:1] if reduction == "first" else group.matrices
    parts = [normed(part, matrix_norm) for m in matrices for part in split(group, m, lines(m).double())]
    parts = parts[:1] if reduction == "first" else parts
    if len({part.shape[1] for part in parts}) > 1:
        parts = [part.sum(1, keepdim=True) for part in parts]
    return reduced(torch.stack(parts), reduction).sum(1)


def split(group: CoupledGroup, matrix: Matrix, lines: Float[Tensor, " line"]) -> Iterator[Float[Tensor, "unit channel"]]:
    """The lines of each matrix that a stored one is made of; lines that belong to no unit (-1 in `units_along`) are left out."""
    dim = matrix.spec.dims[matrix.unit_dim(group.axis)]
    owners = (axes.PARENT.get(group.axis), group.axis)
    for term, values in zip(dim, lines.split([axes.term_size(term, group.sizes) for term in dim]), strict=True):
        if group.axis not in term:
            continue
        # A number in a term says that it holds so many matrices: (2 ffn), (kv 3 head_dim).
        copies = [i for i, name in enumerate(term) if name.isdigit()]
        units = [i for i, name in enumerate(term) if name in owners]
        channels = [i for i in range(len(term)) if i not in copies and i not in units]
        block = values.reshape([axes.axis_size(name, group.sizes) for name in term]).permute(*copies, *units, *channels)
        yield from block.reshape(math.prod(int(term[i]) for i in copies), group.num_units, -1)


def normed(part: Float[Tensor, "unit channel"], how: str) -> Float[Tensor, "unit channel"]:
    size = {"none": lambda: 1.0, "mean": lambda: float(part.mean()), "l2": lambda: float(part.norm())}[how]()
    # A matrix of zeros stays one.
    return part / (size or 1.0)


def reduced(parts: Parts, how: str) -> Float[Tensor, "unit channel"]:
    if how == "max":
        return parts.amax(0)
    if how == "prod":
        return parts.prod(0)
    return parts.mean(0) if how == "mean" else parts.sum(0)


def check_option(method: str, option: str, value: object, allowed: Iterable[str]) -> None:
    """Raises `UserError` unless a criterion's option has one of the allowed values."""
    if value not in (names := tuple(allowed)):
        raise UserError(f"{method}'s {option} is {value!r}. Allowed: {', '.join(names)}.")
