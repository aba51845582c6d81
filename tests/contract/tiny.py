"""Tiny random models of every supported family, for contract tests. No network, a few thousand parameters each.

Sizes are chosen to differ from each other, so that a table that swaps two axes has wrong shapes; sequences longer than `WINDOW`
make sliding layers differ from full ones; every parameter is random, so that a bias that is lost changes the logits.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

HIDDEN, FFN, VOCAB, POSITIONS, WINDOW = 48, 36, 64, 32, 4

_SIZES = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 2, "max_position_embeddings": POSITIONS}
_GQA = _SIZES | {"num_attention_heads": 8, "num_key_value_heads": 4}
_WIDE = _GQA | {"head_dim": 10}  # head_dim is a field of its own and not hidden / heads
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_IDS = {"bos_token_id": 0, "eos_token_id": 0}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GQA,
    "mistral": _GQA | {"sliding_window": WINDOW},
    "qwen2": _GQA | {"use_sliding_window": True, **_SLIDING},
    "qwen3": _WIDE,
    "gemma": _WIDE,
    "gemma2": _WIDE | _SLIDING,
    "gemma3_text": _WIDE | _SLIDING,
    "phi": _GQA | {"hidden_size": 64},  # half of head_dim is rotated, and must be even
    "phi3": _GQA | {"pad_token_id": 0, "eos_token_id": 0, "sliding_window": WINDOW},
    "gpt2": {"n_embd": HIDDEN, "n_head": 8, "n_layer": 2, "n_positions": POSITIONS, "n_inner": FFN} | _IDS,
    "gpt_neo": {"hidden_size": HIDDEN, "num_heads": 8, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
                "window_size": WINDOW, "intermediate_size": FFN, "max_position_embeddings": POSITIONS} | _IDS,
    "gpt_neox": _SIZES | {"num_attention_heads": 8},
    "bloom": {"hidden_size": HIDDEN, "n_head": 8, "n_layer": 2},
    "opt": {"hidden_size": HIDDEN, "ffn_dim": FFN, "num_attention_heads": 8, "num_hidden_layers": 2,
            "max_position_embeddings": POSITIONS},
}  # fmt: skip
MODEL_TYPES = tuple(CONFIGS)

_BIASED = {"attention_bias": True}
# Members of the families with other weights than the plain ones: name -> (model type, overrides).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in MODEL_TYPES},
    "llama-bias": ("llama", _BIASED | {"mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 8}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "qwen3-bias": ("qwen3", _BIASED),
    "gemma-bias": ("gemma", _BIASED),
    "gemma2-bias": ("gemma2", _BIASED | {"tie_word_embeddings": False}),
    "gemma3_text-bias": ("gemma3_text", _BIASED),
    "phi-qk-norm": ("phi", {"qk_layernorm": True}),
    "phi3-head-dim": ("phi3", {"head_dim": 10}),
    "gpt2-default-ffn": ("gpt2", {"n_inner": None, "tie_word_embeddings": False}),
    "gpt_neo-default-ffn": ("gpt_neo", {"intermediate_size": None}),
    "gpt_neox-no-bias": ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    "gpt_neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "bloom-post-norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "opt-350m": ("opt", {"word_embed_proj_dim": 20, "do_layer_norm_before": False}),
    "opt-no-bias": ("opt", {"enable_bias": False}),
    "opt-no-affine": ("opt", {"layer_norm_elementwise_affine": False}),
}


def longer(model_type: str) -> dict[str, Any]:
    """Overrides with which 32 tokens can follow a short prompt."""
    return {"gpt2": {"n_positions": 48}, "bloom": {}}.get(model_type, {"max_position_embeddings": 48})


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """A transformers configuration of `model_type` with 2 layers; `overrides` win over the tiny sizes."""
    return AutoConfig.for_model(model_type, **{"vocab_size": VOCAB, **CONFIGS[model_type], **overrides})


def tiny_model(
    model_type: str, dtype: torch.dtype = torch.float64, seed: int = 0, attention: str = "eager", **overrides: Any
) -> torch.nn.Module:
    """A causal language model in evaluation mode, every parameter drawn from N(0, 0.3^2); `overrides` are the configuration's.

    `attention="sdpa"` works for all but gemma2, gpt_neo and bloom, whose classes have no such code path.
    """
    config = tiny_config(model_type, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def tiny_tokens(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length], uniform over the vocabulary."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
