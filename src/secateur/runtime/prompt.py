"""A prompt on the dense layers, and what follows it on the smaller ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.batch import Batch


def run(
    dense: Callable[..., Any], small: Callable[..., Any], batch: Batch, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a layer returns for the batch, whose dense run says what stays.

    Without a cache a prompt and what follows it are in one pass: both layers then run it, which have the same attention, so that
    a position's output is that of its own MLP. Where nothing follows, the dense layers run ahead one by one on a residual stream
    of their own.
    """
    if not batch.begins:
        return small(*args, **kwargs)
    if not batch.dense:
        given = args if batch.whole is None else (batch.whole, *args[1:])
        batch.whole = _hidden(dense(*given, **kwargs))
        return small(*args, **kwargs)
    whole = dense(*args, **kwargs)
    if batch.dense >= batch.shape[1]:
        return whole
    rest = small(*args, **kwargs)
    joined = torch.cat((_hidden(whole)[:, : batch.dense], _hidden(rest)[:, batch.dense :]), dim=1)
    return (joined, *rest[1:]) if isinstance(rest, tuple) else joined


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
