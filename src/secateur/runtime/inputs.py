"""What a model is called with, and what it is calibrated on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.errors import UserError


def seen(args: Sequence[Any], kwargs: Mapping[str, Any]) -> "tuple[tuple[int, int], Bool[Tensor, 'batch token'] | None]":
    """The batch's samples and tokens, and which of these are no padding; None where all are, or nothing is said of it."""
    given = args[0] if args else kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    if given is None:
        raise UserError("the model was called without `input_ids` or `inputs_embeds`.")
    batch, length = given.shape[:2]
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    valid = _valid(mask, length)
    if valid is not None and valid.device.type == "cpu" and bool(valid.all()):
        valid = None
    return (batch, length), valid


def _valid(mask: Any, length: int) -> "Bool[Tensor, 'batch token'] | None":
    """Of a mask for each token; or for each query and key, one for each kind of layer perhaps, as with a static cache: the keys that
    any query sees."""
    if isinstance(mask, Mapping):
        mask = next((one for one in mask.values() if one is not None), None)
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 2:
        return mask[:, -length:].bool()
    if mask.ndim != 4 or mask.shape[2] != length or mask.shape[3] < length:
        return None
    allowed = mask[:, 0, :, :length]
    return (allowed if mask.dtype == torch.bool else allowed >= 0).any(1)


def batches(blocks: Any, mask: Tensor | None, size: int) -> list[tuple[Tensor, Tensor | None]]:
    """Token ids and masks, `size` blocks at a time, or as an iterable hands them out."""
    if isinstance(blocks, Tensor):
        masks = [None] * len(blocks) if mask is None else mask
        return [
            (blocks[at : at + size], None if mask is None else masks[at : at + size])  # type: ignore[misc]
            for at in range(0, len(blocks), size)
        ]
    return [(ids, None) for ids in blocks]


def checked(parts: list[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor | None]]:
    """The same. Raises `UserError` where there is no token, or no [block, token]."""
    wrong = next((list(ids.shape) for ids, _ in parts if ids.ndim != 2), None)
    if wrong or not any(ids.numel() for ids, _ in parts):
        raise UserError(
            f"calibration blocks {f'of the shape {wrong}' if wrong else 'without any token'} were given. Allowed: token ids "
            "[block, token], or an iterable of batches of that shape."
        )
    return parts
