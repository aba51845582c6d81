"""One weight as GGUF has it: its rows in llama.cpp's order, in one of four types.

A matrix is stored as out x in there; `q8_0` cuts each row into blocks of 32 numbers with a float16 scale.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from secateur.axes import Spec
from secateur.errors import UserError
from secateur.streaming.finite import finite

Kind = Literal["f32", "f16", "bf16", "q8_0"]
BLOCK = 32  # numbers that share a scale in q8_0
PIECE = 1 << 16  # numbers that are converted at once: few enough for a processor's cache
FLOAT = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / BLOCK}
# Half of the last place, relative and at the smallest numbers; of q8_0 see `_error_q8_0`.
ERROR = {"f32": (2.0**-24, 2.0**-149), "f16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-133)}


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One tensor of the file, from the weight `source`. `head_dim`: the rows of each head, which go from halves into pairs."""

    name: str
    source: str
    kind: Kind
    shape: tuple[int, ...]
    transposed: bool = False
    head_dim: int | None = None

    @property
    def num_bytes(self) -> int:
        return round(torch.Size(self.shape).numel() * BYTES[self.kind])


def kind_of(wanted: Kind, shape: tuple[int, ...], *, exact: bool) -> Kind:
    """The type a weight is stored in: vectors and what is added to the hidden state (`exact`) in f32, rows that do not divide
    into blocks in f16, as llama.cpp itself does it."""
    if exact or len(shape) < 2:
        return "f32"
    return "f16" if wanted == "q8_0" and shape[-1] % BLOCK else wanted


def transposed(spec: Spec, *, inner: bool) -> bool:
    """Whether a weight is stored as in -> out: a layer's matrix whose first dimension is read."""
    return inner and len(spec.dims) == 2 and 0 in spec.inputs


def turned(spec: Spec, paired: bool, name: str) -> bool:
    """Whether rotary positions turn the rows of a weight: those of queries and keys."""
    return paired and name.startswith(("self_attn.q_proj.", "self_attn.k_proj."))


def arrange(x: Shaped[Tensor, "..."], slot: Slot) -> Shaped[Tensor, "..."]:
    """A weight in the order that the slot has it in; a view where that is possible."""
    x = x.T if slot.transposed else x
    if slot.head_dim is None:
        return x
    split = x.unflatten(0, (-1, 2, slot.head_dim // 2))
    return split.transpose(1, 2).flatten(0, 2)


def encode(x: Shaped[Tensor, "..."], slot: Slot, origin: str) -> np.ndarray:
    """The tensor's bytes, uint8. Memory: the result, and a piece of `x` in float32. Raises `UserError` for f16's overflow."""
    out = np.empty(slot.num_bytes, dtype=np.uint8)
    at = 0
    for piece in _pieces(x):
        data = _bytes(piece, slot.kind, origin)
        out[at : at + len(data)] = data
        at += len(data)
    assert at == len(out), f"{slot.name}: {at} bytes of {len(out)}"
    return out


def decode(data: np.ndarray, slot: Slot) -> Tensor:
    """Float32 numbers from the bytes of whole rows."""
    import gguf

    if slot.kind == "q8_0":
        return torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q8_0).reshape(-1))
    return torch.from_numpy(data).view(FLOAT[slot.kind]).to(torch.float32, copy=True)


def largest_excess(x: Shaped[Tensor, "..."], slot: Slot, read: Callable[[int], np.ndarray]) -> float:
    """How far the stored numbers are from `x` at most, in units of what the type allows; above 1 they are something else.

    `read(n)`: the next n bytes.
    """
    worst = 0.0
    for piece in _pieces(x):
        # In place, and in float32 unless the weight itself is wider: fresh memory would take most of the time.
        exact = piece.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True).contiguous().view(-1)
        off = decode(read(round(exact.numel() * BYTES[slot.kind])), slot).to(exact.dtype).sub_(exact).abs_()
        found = float(off.div_(_allowed(exact.abs_(), slot.kind)).aminmax().max)
        worst = found if not found <= worst else worst  # NaN stays
    return worst


def _pieces(x: Tensor) -> list[Tensor]:
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    step = max(1, PIECE // rows.shape[-1])
    return list(rows.split(step))


def _bytes(piece: Tensor, kind: Kind, origin: str) -> np.ndarray:
    stored = piece.to(FLOAT["f32" if kind == "q8_0" else kind]).contiguous()
    if not finite(stored):
        if not finite(piece):
            raise UserError(f"{origin} holds NaN or infinity: the checkpoint is damaged. Copy or download it again.")
        raise UserError(f"{origin} has a number beyond the largest of {kind}. Give a wider --dtype: bf16 or f32.")
    if kind == "q8_0":
        import gguf

        blocks: Any = gguf.quants.quantize(stored.numpy(), gguf.GGMLQuantizationType.Q8_0)
        return blocks.reshape(-1)
    return stored.reshape(-1).view(torch.uint8).numpy()


def _allowed(size: Tensor, kind: Kind) -> Tensor:
    """How far off numbers of these absolute values may be; the tensor given may be overwritten."""
    if kind == "q8_0":
        # Half a step of 1/127 of the block's largest number, and the scale's own rounding to float16 over 127 steps.
        step = size.view(-1, BLOCK).amax(1, keepdim=True) / 127
        return (step * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25).expand(-1, BLOCK).flatten()
    relative, least = ERROR[kind]
    return size.mul_(relative).add_(least)
