"""NaN and infinity: found cheaply, and blamed on the weight they come from."""

import torch
from torch import Tensor

from secateur import axes
from secateur.errors import UserError
from secateur.streaming.source import Source

CHUNK = 32 << 20  # bytes of a weight outside the layers that are looked at at a time
OVERFLOW = "the activations overflow. Compute in a wider type: --dtype fp32 (or bf16 instead of fp16)."


def finite(x: Tensor) -> bool:
    """No NaN and no infinity. A minimum and a maximum are NaN if any element is, and need no temporary: ten times faster."""
    return x.numel() == 0 or bool(torch.stack(x.aminmax()).isfinite().all())


def check_outer(source: Source) -> None:
    """Raise `UserError` if a weight outside the layers holds NaN or infinity. The layers are checked as they run."""
    binding = source.binding
    for name, spec in binding.outer.items():
        rows, *rest = axes.shape(spec, binding.sizes)
        step = max(1, CHUNK // (torch.Size(rest).numel() * source.dtype(name).itemsize))
        if not all(finite(source.read_rows(name, torch.arange(at, min(at + step, rows)))) for at in range(0, rows, step)):
            raise _damaged(source, name)


def blame(source: Source, layer: int, otherwise: str = OVERFLOW) -> UserError:
    """The weight that made something of a layer NaN or infinite, or what to think if all weights are finite."""
    for name in source.binding.layer:
        full = source.binding.layer_name(layer, name)
        if not finite(source.read(full)):
            return _damaged(source, full, f"layer {layer}: ")
    try:
        check_outer(source)
    except UserError as error:
        return error
    return UserError(f"layer {layer} gives NaN or infinity although its weights are finite: {otherwise}")


def _damaged(source: Source, name: str, where: str = "") -> UserError:
    return UserError(
        f"{where}{source.origin(name)} holds NaN or infinity. The checkpoint is damaged or its training diverged: get a sound "
        f"copy of it."
    )
