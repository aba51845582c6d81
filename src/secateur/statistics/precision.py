"""Float32 products that are float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 matrix products use neither TF32 nor bf16, whatever the process has chosen; its choice is put back after.

    Reads and writes the backends' own switches where PyTorch has them (2.9 and later): once one of them has been set, the older
    `torch.get_float32_matmul_precision` refuses to answer.
    """
    switches = [b for b in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul) if hasattr(b, "fp32_precision")]  # type: ignore[attr-defined]
    if switches:
        before = [s.fp32_precision for s in switches]
        try:
            for s in switches:
                s.fp32_precision = "ieee"
            yield
        finally:
            for s, value in zip(switches, before, strict=True):
                s.fp32_precision = value
    else:
        chosen = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
