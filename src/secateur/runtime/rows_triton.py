"""Products with some rows of a matrix that are read where they lie: a Triton kernel, for CUDA devices. Imported only when asked for.

A program computes one tile of the outputs, as in any tiled product; but the rows of its tile of the weight are those that `index`
names. So the weight is read once, where copying it first reads it, writes it and reads it again. Sums are float32; float32 factors
are multiplied as such and not as TF32.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.errors import UserError

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    raise UserError(
        "multiplying by rows where they lie needs Triton, which is not installed. Install it (`pip install triton`, for Linux), or "
        "use gather='copy'."
    ) from missing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What one program computes and how: `tokens` x `outputs`, over the inputs in steps of `inputs`; powers of two from 16.

    The tiles of `stages` steps are in shared memory at a time: at most 48 KiB here, which every device has.
    """

    tokens: int
    outputs: int
    inputs: int = 32
    warps: int = 4
    stages: int = 3
    group: int = 8
    """So many tiles of tokens take turns with one tile of the weight, which then is in the cache."""

    @classmethod
    def of(cls, tokens: int, dtype: torch.dtype) -> "Tile":
        """Not tuned: no device was at hand."""
        wide = dtype.itemsize == 4
        most = 64 if wide else 128
        return cls(tokens=min(most, max(16, 1 << (tokens - 1).bit_length())), outputs=most)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can compute with these. It has no gradient."""
    return x.dtype == weight.dtype and x.dtype in DTYPES and not (torch.is_grad_enabled() and x.requires_grad)


def to_rows(
    x: Float[Tensor, "*tokens other"],
    weight: Float[Tensor, "row other"],
    index: Int[Tensor, " kept"],
    bias: Float[Tensor, " row"] | None = None,
    tile: Tile | None = None,
) -> Float[Tensor, "*tokens kept"]:
    """y[t, k] = sum over d of x[t, d] W[index[k], d] + b[index[k]]: the rows are outputs. The rows of W lie in one piece each."""
    return _multiply(x, weight, index, bias, outputs=len(index), to_rows=True, tile=tile)


def from_rows(
    x: Float[Tensor, "*tokens kept"],
    weight: Float[Tensor, "row other"],
    index: Int[Tensor, " kept"],
    bias: Float[Tensor, " other"] | None = None,
    tile: Tile | None = None,
) -> Float[Tensor, "*tokens other"]:
    """y[t, o] = sum over k of x[t, k] W[index[k], o] + b[o]: the rows are inputs. The rows of W lie in one piece each."""
    return _multiply(x, weight, index, bias, outputs=weight.shape[1], to_rows=False, tile=tile)


def _multiply(
    x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, *, outputs: int, to_rows: bool, tile: Tile | None
) -> Tensor:
    assert weight.stride(1) == 1 and index.is_contiguous() and (bias is None or bias.is_contiguous())
    flat = x.reshape(-1, x.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    y = x.new_empty(*x.shape[:-1], outputs)
    if y.numel() == 0:
        return y
    tile = tile or Tile.of(len(flat), x.dtype)
    grid = (triton.cdiv(len(flat), tile.tokens) * triton.cdiv(outputs, tile.outputs),)
    launch: Any = _product[grid]
    with torch.cuda.device(x.device if x.is_cuda else -1):  # Triton launches on the current device
        launch(
            flat, weight, index, weight if bias is None else bias, y, len(flat), outputs, flat.shape[1],
            flat.stride(0), weight.stride(0), TO_ROWS=to_rows, BIASED=bias is not None, TOKENS=tile.tokens,
            OUTPUTS=tile.outputs, INPUTS=tile.inputs, GROUP=tile.group, WIDEN=x.dtype == torch.bfloat16 and not x.is_cuda,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return y


@triton.jit
@no_type_check  # or a checker of annotations would stand between Triton and the source
def _product(
    x, weight, index, bias, y, tokens, outputs, inputs, x_stride, weight_stride,
    TO_ROWS: tl.constexpr, BIASED: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(outputs, OUTPUTS)
    program = tl.program_id(0)
    at_t, at_o = tl.swizzle2d(program // across, program % across, tl.cdiv(tokens, TOKENS), across, GROUP)
    t = at_t.to(tl.int64) * TOKENS + tl.arange(0, TOKENS)  # times a stride may pass 2^31
    o = at_o * OUTPUTS + tl.arange(0, OUTPUTS)
    there_t, there_o = t < tokens, o < outputs
    step = tl.arange(0, INPUTS)
    if TO_ROWS:
        out_row, in_row = tl.load(index + o, mask=there_o, other=0), step
    else:  # a step ahead, or the loads of the weight would wait for those of the index
        out_row, in_row = o, tl.load(index + step, mask=step < inputs, other=0)
    total = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for start in range(0, inputs, INPUTS):
        i = start + step
        there_i = i < inputs
        there = there_i[:, None] & there_o[None, :]
        a = tl.load(x + t[:, None] * x_stride + i[None, :], mask=there_t[:, None] & there_i[None, :], other=0.0)
        if TO_ROWS:
            b = tl.load(weight + out_row[None, :] * weight_stride + i[:, None], mask=there, other=0.0)
        else:
            b = tl.load(weight + in_row[:, None] * weight_stride + o[None, :], mask=there, other=0.0)
            in_row = tl.load(index + INPUTS + i, mask=INPUTS + i < inputs, other=0)
        if WIDEN:  # Triton's interpreter has no products in bfloat16
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias + out_row, mask=there_o, other=0.0).to(tl.float32)[None, :]
    tl.store(y + t[:, None] * outputs + o[None, :], total.to(y.dtype.element_ty), mask=there_t[:, None] & there_o[None, :])
