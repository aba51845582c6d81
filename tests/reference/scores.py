"""Every criterion's formula by itself, on the activations, with loops: no statistics, no reductions shared with the package.

`w` is the reader [out, column], `x` its input [token, column], `unit` the unit of each column.
"""

import math
from collections.abc import Sequence

from torch import Tensor


def norms(x: Tensor) -> list[float]:
    return [math.sqrt(sum(float(v) ** 2 for v in column)) for column in x.double().T]


def variances(x: Tensor) -> list[float]:
    out = []
    for column in x.double().T:
        mean = sum(column.tolist()) / len(column)
        out.append(sum((v - mean) ** 2 for v in column.tolist()) / (len(column) - 1))
    return out


def power_sums(w: Tensor, power: int) -> list[float]:
    return [sum(abs(v) ** power for v in column.tolist()) for column in w.double().T]


def by_unit(columns: Sequence[float], unit: Sequence[int]) -> list[list[float]]:
    return [[c for c, u in zip(columns, unit, strict=True) if u == wanted] for wanted in range(max(unit) + 1)]


def magnitude(w: Tensor, unit: Sequence[int]) -> list[float]:
    return [sum(c) for c in by_unit([math.sqrt(s) for s in power_sums(w, 2)], unit)]


def wanda_sp(w: Tensor, x: Tensor, unit: Sequence[int]) -> list[float]:
    columns = [a * n for a, n in zip(power_sums(w, 1), norms(x), strict=True)]
    return [sum(c) for c in by_unit(columns, unit)]


def flap(w: Tensor, x: Tensor, unit: Sequence[int], *, metric: str, squared: bool) -> list[float]:
    if metric == "wifn":
        columns = [a / len(w) * n for a, n in zip(power_sums(w, 1), norms(x), strict=True)]
    else:
        weights = power_sums(w, 2) if metric == "wifv" else [1.0] * w.shape[1]
        columns = [v * s for v, s in zip(variances(x), weights, strict=True)]
    return [sum(c**2 if squared else c for c in group) for group in by_unit(columns, unit)]


def ppsp(w: Tensor, x: Tensor, unit: Sequence[int]) -> list[float]:
    columns = [math.sqrt(s) * n**2 / len(x) for s, n in zip(power_sums(w, 4), norms(x), strict=True)]
    return [math.sqrt(sum(c**2 for c in group)) for group in by_unit(columns, unit)]


def wanda_rows(w: Tensor, x: Tensor, unit: Sequence[int]) -> list[float]:
    """Of a matrix [row, column] whose *rows* belong to units; -1 for rows that belong to none."""
    n = norms(x)
    rows = [sum(abs(v) * n[j] for j, v in enumerate(row.tolist())) for row in w.double()]
    return [sum(c) for c in by_unit(rows, unit)]


def output_error(w: Tensor, x: Tensor, kept_w: Tensor, keep: Sequence[int], bias: Tensor | None = None) -> float:
    """Squared error over tokens of what the reader says with the kept columns and a new bias."""
    x = x.double()
    said = x[:, list(keep)] @ kept_w.double().T + (0 if bias is None else bias)
    return float((said - x @ w.double().T).square().sum())
