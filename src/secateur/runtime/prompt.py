"""A prompt on the dense layers, and what follows it on the smaller ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from secateur.runtime.batch import Batch


def run(
    dense: Callable[..., Any], small: Callable[..., Any], batch: Batch, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a layer returns for the batch.

    Without a cache a prompt and what follows it are in one pass: both layers then run it, which have the same attention, so that
    a position's output is that of its own MLP.
    """
    if not batch.dense:
        return small(*args, **kwargs)
    whole = dense(*args, **kwargs)
    if batch.dense >= batch.shape[1]:
        return whole
    rest = small(*args, **kwargs)
    if isinstance(whole, tuple):
        return (_joined(whole[0], rest[0], batch.dense), *whole[1:])
    return _joined(whole, rest, batch.dense)


def _joined(whole: torch.Tensor, rest: torch.Tensor, prompt: int) -> torch.Tensor:
    return torch.cat((whole[:, :prompt], rest[:, prompt:]), dim=1)
