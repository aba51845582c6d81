"""Float32 products that are float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(*, of_bf16: bool = False) -> Iterator[None]:
    """Inside, float32 matrix products use neither TF32 nor bf16, whatever the process has chosen; its choice is put back after.

    `of_bf16`: every operand was bf16 before it became float32. Then a CPU that multiplies bf16 and adds in float32 may do so: the
    products are the same to the last bit, and come twice as fast where there are instructions for it.

    Reads and writes the backends' own switches where PyTorch has them (2.9 and later): once one of them has been set, the older
    `torch.get_float32_matmul_precision` refuses to answer.
    """
    switches = [b for b in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul) if hasattr(b, "fp32_precision")]  # type: ignore[attr-defined]
    if switches:
        before = [s.fp32_precision for s in switches]
        try:
            for s in switches:
                s.fp32_precision = "bf16" if of_bf16 and s is torch.backends.mkldnn.matmul else "ieee"  # type: ignore[attr-defined]
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
