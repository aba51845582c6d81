"""What the sampled estimators share: their options, central differences, and the file of slopes between their two passes.

A slope rho[n, k] is the derivative of sample n's summed loss along direction k. The gradients it stands for are
g_n = mean_k rho[n, k] z_k: right on average, as E z z^T = I.
"""

import math
import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.gradients.directions import Design, Hadamard, Plain
from secateur.gradients.estimator import KINDS, Task
from secateur.streaming.collect import Request
from secateur.streaming.finite import finite
from secateur.streaming.tensorfile import TensorFile, TensorWriter

SAMPLED = KINDS - {"output-gradient-gram"}
"""Kinds that a gradient with respect to gates or weights says something of."""


def check_count(estimator: str, n: int) -> None:
    if n < 1:
        raise UserError(f"{estimator}: n={n} was given. It is the number of directions, a whole number of at least 1.")


def check_step(estimator: str, eps: float) -> None:
    if not math.isfinite(eps) or eps <= 0:
        raise UserError(f"{estimator}: eps={eps} was given. It is the length of a step, a finite number above 0, such as 1e-3.")


def check_design(estimator: str, design: str, order: int | None) -> None:
    if design not in ("hadamard", "plain"):
        raise UserError(f"{estimator}: design={design} was given. Allowed: hadamard, plain.")
    if order is None:
        return
    if design == "plain":
        raise UserError(f"{estimator}: order={order} was given, but design=plain has no order. Leave one of them out.")
    if not isinstance(order, int) or order < 1 or order & (order - 1):
        raise UserError(
            f"{estimator}: order={order} was given. A Hadamard design has an order that is a power of two: 1, 2, 4, 8, ... Leave "
            f"it out to get the largest that the number of samples times n fills."
        )


def design_of(kind: str, order: int | None, *, seed: int, gates: int, slots: int) -> Design:
    """`order` None: the largest power of two that the slots fill."""
    if kind == "plain":
        return Plain(seed=seed, gates=gates)
    return Hadamard(seed=seed, gates=gates, order=order or 1 << (slots.bit_length() - 1))


def slopes(plus: Float[Tensor, "*any"], minus: Float[Tensor, "*any"], eps: float) -> Float[Tensor, "*any"]:
    """rho = (L(+eps z) - L(-eps z)) / (2 eps), exact for a quadratic loss."""
    return (plus.double() - minus.double()) / (2 * eps)


def coupled_modules(binding: Binding, pruned: tuple[str, ...]) -> list[str]:
    """The modules whose matrices units of these axes are part of."""
    return [
        name.rpartition(".")[0]
        for name, spec in binding.layer.items()
        if len(spec.dims) == 2 and any(spec.mentions(axis) for axis in pruned)
    ]


def boundary_name(task: Task) -> str:
    """Of the hidden states of an interrupted pass: directions depend on the axes, and so do these."""
    return "-".join(["hidden", *task.axes])


def finished(task: Task) -> bool:
    return task.store.finished(task.binding.num_layers, task.request) == task.binding.num_layers


def save_slopes(task: Task, rho: Float[Tensor, "sample query"]) -> None:
    """Raises `UserError` if one is not finite."""
    if not finite(rho):
        raise UserError(
            "a derivative of the loss is NaN or infinite. Choose another eps, or compute in a wider type: --dtype fp32."
        )
    with TensorWriter(
        task.store.directory / "slopes.safetensors.partial", {"rho": (torch.float64, tuple(rho.shape))}
    ) as writer:
        writer.write("rho", rho)
    os.replace(writer.path, _path(task))


def measured(task: Task, watched: Request) -> bool:
    """An earlier task for the same axes saved its slopes, and the moments that were gathered with them."""
    try:
        load_slopes(task)
    except UserError:
        return False
    return task.store.finished(task.binding.num_layers, watched) == task.binding.num_layers


def load_slopes(task: Task) -> Float[Tensor, "sample query"]:
    return TensorFile.open(_path(task)).read("rho")


def _path(task: Task) -> Path:
    return task.store.directory / f"{'-'.join(['slopes', *task.axes])}.safetensors"
