"""Arithmetic that a model really does, as torch counts it while it runs."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


class Work(NamedTuple):
    """Floating-point operations of matrix products and attention; a masked score counts as any other."""

    prefill: int
    decode: int


@torch.no_grad()
def count_work(model: Any, ids: Int[Tensor, "batch token"], new_tokens: int) -> Work:
    """Of one forward pass without a cache, and of `new_tokens` steps after another that fills it: what `time_once` times."""
    ids = ids.to(model.device)
    with FlopCounterMode(display=False, custom_mapping=_CPU) as prefill:
        model(ids, use_cache=False)
    if not new_tokens:
        return Work(prefill.get_total_flops(), 0)
    out = model(ids, use_cache=True)
    cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
    del out
    with FlopCounterMode(display=False, custom_mapping=_CPU) as decode:
        for _ in range(new_tokens):
            token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return Work(prefill.get_total_flops(), decode.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}  # which torch has no formula for
