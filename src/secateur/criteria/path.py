"""The greedy path of a group's reader in the precision that it takes, and the scores that stand for it.

Readers of more than 8,192 columns are done in float32. Halfway, where rounding has added up over thousands of steps and the units
still matter, the costs of the next few are computed anew in float64: with K the columns that are left and H_KK = L L^T,

    X = (H_KK)^-1 E_u,   V = H_:K X,   cost(u) = tr((X_u)^-1 V^T A V)            A = W^T F W of the reader as it was

which needs one Cholesky factorisation: with the units in the reverse of their order, the leading part of L belongs to what is left
a step later. Where the two disagree, the whole path is done again in float64.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.axes import PARENT
from secateur.criteria.elimination import ROWS, WIDE, Inverse, Path, eliminate
from secateur.criteria.envelope import ascending, envelope
from secateur.criteria.unit import CoupledGroup
from secateur.statistics.gram import Gram

CHECKED = 16
"""Units whose costs are computed anew."""
STEPS = 2.5
"""Operations of the elimination over columns^3: the updates, and as long again for what is not products (docs/papers/obs.md)."""
TOLERANCE = 0.01
"""By how much of their sum the costs of those may be off, added up."""

Energy = Callable[[Float[Tensor, "column n"]], Float[Tensor, "n n"]]
"""V -> V^T A V in float64, without A."""
Weigh = Callable[[torch.dtype], tuple[Float[Tensor, "column column"], Energy]]
"""Type -> A of a reader in that type, which may be written to, and what it does to vectors."""


def greedy_path(group: CoupledGroup, gram: Gram, ridge: float, weigh: Weigh) -> Path:
    """All units of the group in the order in which they leave, one of each parent head before a second of any.

    `ridge`: a fraction of the Gram matrix's `typical` diagonal. Memory beside the arguments: two matrices [column, column],
    float64 up to 8,192 columns and float32 beyond; while the Gram matrix is inverted, one in float64.
    """
    units, rows = group.unit_of_column, rows_of(group)
    if len(units) > WIDE:
        # Rounding may make a block indefinite.
        with suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
            path, inverse, energy = _in(torch.float32, units, rows, gram, ridge, weigh)
            at = group.num_units // 2
            exact = recomputed(path, gram, inverse, units, energy, at=at, many=CHECKED)
            if float((path.cost[at : at + CHECKED] - exact).abs().sum()) <= TOLERANCE * float(exact.sum()):
                return path
    return _in(torch.float64, units, rows, gram, ridge, weigh)[0]


def _in(
    dtype: torch.dtype, units: Int[Tensor, " column"], rows: int, gram: Gram, ridge: float, weigh: Weigh
) -> tuple[Path, Inverse, Energy]:
    inverse = Inverse.of(gram, ridge)
    b, inverse = inverse.matrix.to(dtype), inverse.without_matrix()
    a, energy = weigh(dtype)
    a[inverse.dead], a[:, inverse.dead] = 0, 0  # their weights act on nothing
    return eliminate(a, b, units, rows=rows), inverse, energy


def recomputed(
    path: Path, gram: Gram, inverse: Inverse, unit_of_column: Int[Tensor, " column"], energy: Energy, *, at: int, many: int
) -> Float[Tensor, " step"]:
    """What the steps from `at` on cost, each anew from the units that are left before it; float64."""
    number = len(path.order)
    own = unit_of_column.argsort(stable=True).view(number, -1)  # [unit, column]
    columns = own[path.order[at:].flip(0).to(own.device)].flatten()  # the next to leave is last
    factor = torch.linalg.cholesky(_second_moments(gram, inverse, columns))
    steps, size = min(many, number - at), own.shape[1]
    x = torch.zeros(len(unit_of_column), steps * size, dtype=torch.float64, device=factor.device)
    blocks = []
    for step in range(steps):
        stop = len(columns) - step * size
        unit = torch.zeros(stop, size, dtype=torch.float64, device=factor.device)
        unit[-size:].fill_diagonal_(1)
        solved = torch.cholesky_solve(unit, factor[:stop, :stop])
        x[columns[:stop], step * size : (step + 1) * size] = solved
        blocks.append(solved[-size:])
    v = inverse.lam * x
    for start in range(0, len(v), ROWS):
        v[start : start + ROWS].addmm_(gram.matrix[start : start + ROWS].double(), x, alpha=1 / gram.count)
    v[inverse.dead] = 0  # their weights act on nothing
    parts = [energy(v[:, i * size : (i + 1) * size]) for i in range(steps)]
    return torch.stack([torch.linalg.solve(b, a).trace() for a, b in zip(parts, blocks, strict=True)]).cpu()


def _second_moments(gram: Gram, inverse: Inverse, columns: Int[Tensor, " column"]) -> Float[Tensor, "column column"]:
    """H of some columns, in their order, in float64."""
    h = torch.empty(len(columns), len(columns), dtype=torch.float64, device=gram.matrix.device)
    for start in range(0, len(columns), ROWS):
        h[start : start + ROWS] = gram.matrix[columns[start : start + ROWS]].index_select(1, columns)
    h /= gram.count
    diagonal = h.diagonal()
    diagonal += inverse.lam
    diagonal[torch.isin(columns, inverse.dead)] = 1
    return h


def path_bytes(columns: int) -> int:
    """Memory of `greedy_path` at the peak, its Gram matrix (float32) included, where float32 is not found wrong.

    A and H^-1 in float64; beyond 8,192 columns the inverse in float64 and float32. Measured in docs/papers/obs.md.
    """
    return (4 + (16 if columns <= WIDE else 12)) * columns**2


def path_flops(columns: int, outs: int, *, metric: bool) -> float:
    """Operations of `greedy_path` in those of float32. `metric`: A has an F of [out, out] between."""
    width = 2 if columns <= WIDE else 1
    a = 2 * outs * columns**2 + (2 * outs**2 * columns if metric else 0)
    return width * (STEPS * columns**3 + a) + 2 * columns**3


def rows_of(group: CoupledGroup) -> int:
    """Units that leave at once: one of each parent head, which keep equally many."""
    return group.sizes[PARENT[group.axis]] if group.axis in PARENT else 1


def path_scores(group: CoupledGroup, path: Path, scale: int = 1) -> Float[Tensor, " unit"]:
    """Slopes of the lower convex envelope of the path's cost over `scale` times parameters, strictly ascending along the path."""
    rows = rows_of(group)
    rungs = path.cost.view(-1, rows).sum(1) / (scale * rows * group.parameters_per_unit)
    scores = torch.empty_like(path.cost)
    scores[path.order] = ascending(envelope(rungs).repeat_interleave(rows))
    return scores
