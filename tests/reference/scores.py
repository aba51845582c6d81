"""Every criterion's formula by itself, on the activations, with loops: no statistics, no reductions shared with the package.

`w` is the reader [out, column], `x` its input [token, column], `unit` the unit of each column.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

Elements = list[list[float]]  # [out][column]


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


def sample_gradients(x: Tensor, delta: Tensor, length: int) -> list[Tensor]:
    """[out, column] for each sample of so many tokens, of its summed loss. `delta`: the loss gradient at the output [token, out]."""
    each = [torch.outer(d, v) for d, v in zip(delta, x, strict=True)]
    return [sum(each[at + 1 : at + length], start=each[at]) for at in range(0, len(each), length)]


def fms(w: Tensor, x: Tensor, delta: Tensor, *, form: str) -> Elements:
    (g,) = sample_gradients(x, delta, len(x))
    activation = norms(x) if form == "product" else [abs(fmean(column.tolist())) for column in x.T]
    return [[abs(float(g[i, j] * w[i, j])) * a for j, a in enumerate(activation)] for i in range(len(w))]


def taylor(w: Tensor, x: Tensor, delta: Tensor, length: int, *, form: str) -> Elements:
    """`vector`: signed elements, whose line sums are still to be made absolute."""
    each = sample_gradients(x, delta, length)

    def element(i: int, j: int) -> float:
        g, v = [float(n[i, j]) for n in each], float(w[i, j])
        if form in ("element", "vector"):
            return abs(sum(g) * v) if form == "element" else sum(g) * v
        mean = [a / (length - 1) for a in g]  # of the mean over the sample's predicted tokens
        fisher = fmean([a**2 for a in mean])
        return v**2 * fisher if form == "second" else abs(fmean(mean) * v - v**2 * fisher / 2)

    return [[element(i, j) for j in range(w.shape[1])] for i in range(len(w))]


def gblm(w: Tensor, x: Tensor, delta: Tensor, length: int, *, alpha: float, norm: str) -> Elements:
    """With the authors' mean over the samples that there are."""
    each = [g / (length - 1) for g in sample_gradients(x, delta, length)]
    activation = [math.sqrt(fmean(energy)) for energy in zip(*([n**2 for n in norms(s)] for s in x.split(length)), strict=True)]

    def gradient(i: int, j: int) -> float:
        g = [float(n[i, j]) for n in each]
        return math.sqrt(sum(a**2 for a in g)) if norm == "l2" else sum(abs(a) for a in g)

    return [[abs(float(w[i, j])) * (a + alpha * gradient(i, j)) for j, a in enumerate(activation)] for i in range(len(w))]


def lines(elements: Elements, *, by_column: bool) -> list[float]:
    return [sum(line) for line in (zip(*elements, strict=True) if by_column else elements)]


def coupled(matrices: list[list[list[float]]], *, reduction: str, matrix_norm: str = "none") -> list[float]:
    """Scores from [matrix][unit][channel]; a matrix's channels are added up first where matrices have different numbers of them."""
    reduce = {"sum": sum, "mean": fmean, "max": max, "prod": math.prod, "first": lambda values: values[0]}[reduction]
    normed = []
    for units in matrices:
        values = [v for unit in units for v in unit]
        size = {"none": 1.0, "mean": fmean(values), "l2": math.sqrt(sum(v**2 for v in values))}[matrix_norm]
        normed.append([[v / size for v in unit] for unit in units])
    if len({len(units[0]) for units in normed}) > 1:
        normed = [[[sum(unit)] for unit in units] for units in normed]
    return [sum(reduce(channel) for channel in zip(*unit, strict=True)) for unit in zip(*normed, strict=True)]


def gates(w: Tensor, x: Tensor, delta: Tensor, length: int, unit: Sequence[int]) -> list[list[float]]:
    """t [sample][unit] of a reader: sum over the sample's tokens and the unit's columns of x . dL/dx."""
    back = (delta @ w * x).tolist()
    columns = [[sum(c) for c in zip(*back[at : at + length], strict=True)] for at in range(0, len(back), length)]
    return [[sum(c) for c in by_unit(sample, unit)] for sample in columns]
