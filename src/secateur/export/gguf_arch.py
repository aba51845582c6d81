"""Which of llama.cpp's architectures can hold a model, and what it is told about it.

An architecture is a table, as a family is: our names of the weights and those that llama.cpp loads. What a table does not name,
llama.cpp does not compute with, so a model that has it is refused. Read off llama.cpp's own model files (build 0.3.36 of
llama-cpp-python); `docs/gguf.md` lists what was run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.axes import Sizes
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.families.family import Config

Facts = dict[str, Any]
"""Method of `gguf.GGUFWriter` without its `add_` -> argument."""
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary scaling whose frequencies do not depend on the length of the text."""
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`outer` and `layer`: our names of the weights -> llama.cpp's; those of a layer after `blk.N.`."""

    name: str
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    facts: Callable[[Binding, Sequence[Sizes]], Facts]
    unequal: bool = False
    """Whether every layer may have its own numbers of heads and channels."""
    heads_fill_hidden: bool = False
    """Whether heads x head_dim must be the hidden size."""
    paired: bool = False
    """Whether rotary positions turn neighbouring rows of a head, where Hugging Face turns row i and row i + head_dim / 2."""
    rope_factors: bool = False
    """Whether it divides each rotary frequency by a factor of the file's."""
    activations: tuple[str, ...] = ("silu", "swish")
    refuses: Callable[[Config], list[str]] = field(default=lambda config: [])
    """What else of a configuration it does not compute."""


def rotary_frequencies(binding: Binding) -> tuple[Float[Tensor, " pair"], float] | None:
    """Rotary frequencies as the model's own class computes them, and what cosine and sine are multiplied by; None without any."""
    for module in binding.model.modules():
        found = getattr(module, "inv_freq", None)
        if isinstance(found, Tensor):
            return found.double(), float(getattr(module, "attention_scaling", 1.0))
    return None


def rope_factors(binding: Binding) -> Float[Tensor, " pair"] | None:
    """What llama.cpp divides its plain frequencies by to have the model's; None where these are the plain ones."""
    found = rotary_frequencies(binding)
    if found is None:
        return None
    frequencies, _ = found
    plain = _theta(binding.config) ** -(torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies))
    factors = plain / frequencies
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors.float()


def context_length(config: Config) -> tuple[int, str | None]:
    """How many tokens the file is good for, and why fewer than the model's, if so: these architectures have no sliding window."""
    length, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
    if window is None or not slides or window >= length:
        return length, None
    return window, (
        f"the model attends to the last {window:,} tokens and this architecture of llama.cpp to all: both are the same up to "
        f"{window:,} tokens, which the file gives as its context length"
    )


def choose(binding: Binding, layers: Sequence[Sizes]) -> Architecture:
    """The first architecture that can hold a model of these layers. Raises `UserError` where none can, and says why."""
    candidates = ARCHITECTURES.get(binding.model_type, ())
    if not candidates:
        raise UserError(
            f"GGUF of a {binding.model_type!r} model is not supported: it was not run in llama.cpp. Supported model types: "
            f"{', '.join(ARCHITECTURES)}. llama.cpp's own convert_hf_to_gguf.py takes more families, of stock checkpoints "
            f"(`secateur prune --format stock`)."
        )
    found = {one.name: _reasons(one, binding, layers) for one in candidates}
    fitting = next((one for one in candidates if not found[one.name]), None)
    if fitting is None:
        why = "; ".join(f"{name}: {', and '.join(reasons)}" for name, reasons in found.items())
        raise UserError(
            f"llama.cpp has no architecture for this {binding.model_type!r} model. {why}. {_way_out(binding, found)}"
        )
    return fitting


def _reasons(one: Architecture, binding: Binding, layers: Sequence[Sizes]) -> list[str]:
    reasons, hidden = [], binding.sizes["hidden"]
    extra = [n for n in binding.layer if n not in one.layer] + [n for n in binding.outer if n not in one.outer]
    if extra:
        reasons.append(f"it has no {', no '.join(extra)}")
    if not one.unequal and any(dict(sizes) != dict(layers[0]) for sizes in layers):
        reasons.append("its layers are all of one size")
    if one.heads_fill_hidden and any(heads(sizes) * sizes["head_dim"] != hidden for sizes in layers):
        reasons.append(f"its heads together are as wide as the hidden size, {hidden}")
    if (act := _activation(binding.config)) not in one.activations:
        reasons.append(f"its activation is {one.activations[0]}, not {act}")
    reasons += _rotary_reasons(one, binding) if rotary_frequencies(binding) else []
    return reasons + one.refuses(binding.config)


def _rotary_reasons(one: Architecture, binding: Binding) -> list[str]:
    kind, head_dim = binding.config.rope_parameters.get("rope_type", "default"), binding.sizes["head_dim"]
    found = rotary_frequencies(binding)
    assert found is not None
    if kind not in STATIC_ROPE:
        return [f"rotary positions of the kind {kind!r} change with the length of the text"]
    if 2 * len(found[0]) != head_dim:
        return [f"it turns all {head_dim} rows of a head, not {2 * len(found[0])}"]
    if not one.rope_factors and (rope_factors(binding) is not None or found[1] != 1):
        return [f"it has no rotary positions of the kind {kind!r}"]
    return []


def _way_out(binding: Binding, found: Mapping[str, list[str]]) -> str:
    if any("one size" in reason or "heads together" in reason for reasons in found.values() for reason in reasons):
        return "Prune with --axes ffn --format stock, which keeps heads and gives every layer the same width."
    return "llama.cpp would compute something else, so nothing is written; use the Hugging Face checkpoint."


def heads(sizes: Sizes) -> int:
    """Query heads of a layer."""
    return sizes["kv"] * sizes.get("group", 1)


def _activation(config: Config) -> str:
    return getattr(config, "hidden_act", None) or config.activation_function


def _theta(config: Config) -> float:
    return float(config.rope_parameters["rope_theta"])


def _whole(values: list[int]) -> int | list[int]:
    """One number where all layers have the same."""
    return values[0] if len(set(values)) == 1 else values


def _common(binding: Binding, layers: Sequence[Sizes]) -> Facts:
    return {
        "vocab_size": binding.sizes["vocab"], "context_length": context_length(binding.config)[0],
        "embedding_length": binding.sizes["hidden"], "block_count": len(layers),
        "feed_forward_length": _whole([sizes["ffn"] for sizes in layers]),
        "head_count": _whole([heads(sizes) for sizes in layers]),
    }  # fmt: skip


def _rotary_facts(binding: Binding, layers: Sequence[Sizes]) -> Facts:
    head_dim, found = binding.sizes["head_dim"], rotary_frequencies(binding)
    assert found is not None
    facts = _common(binding, layers) | {
        "head_count_kv": _whole([sizes["kv"] for sizes in layers]), "key_length": head_dim, "value_length": head_dim,
        "rope_dimension_count": head_dim, "rope_freq_base": _theta(binding.config),
        "layer_norm_rms_eps": binding.config.rms_norm_eps,
    }  # fmt: skip
    return facts if found[1] == 1 else facts | {"rope_scaling_attn_factors": found[1]}


def _gpt2_facts(binding: Binding, layers: Sequence[Sizes]) -> Facts:
    return _common(binding, layers) | {"layer_norm_eps": binding.config.layer_norm_epsilon}


def _gpt2_refuses(config: Config) -> list[str]:
    scaled = not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx
    return ["it scales attention by the root of head_dim alone"] if scaled else []


_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PROJECTIONS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **{f"{ours}.weight": f"{theirs}.weight" for ours, theirs in _PROJECTIONS.items()},
}
_BIASES = {f"{ours}.bias": f"{theirs}.bias" for ours, theirs in _PROJECTIONS.items()}

LLAMA = Architecture(
    name="llama", outer=_OUTER, layer=_LAYER | _BIASES, facts=_rotary_facts, paired=True, rope_factors=True
)  # fmt: skip
DECI = Architecture(
    name="deci", outer=_OUTER, layer=_LAYER | _BIASES, facts=_rotary_facts, paired=True, rope_factors=True, unequal=True
)  # fmt: skip
QWEN2 = Architecture(
    name="qwen2", outer=_OUTER, facts=_rotary_facts, heads_fill_hidden=True,
    layer=_LAYER | {n: _BIASES[n] for n in ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")},
)  # fmt: skip
QWEN3 = Architecture(
    name="qwen3", outer=_OUTER, facts=_rotary_facts,
    layer=_LAYER | {"self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight"},
)  # fmt: skip
GPT2 = Architecture(
    name="gpt2", facts=_gpt2_facts, heads_fill_hidden=True, activations=TANH_GELU, refuses=_gpt2_refuses,
    outer={
        "transformer.wte.weight": "token_embd.weight", "transformer.wpe.weight": "position_embd.weight",
        "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
        "lm_head.weight": "output.weight",
    },
    layer={
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in {
            "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
            "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        }.items()
        for kind in ("weight", "bias")
    },
)  # fmt: skip

ARCHITECTURES: Mapping[str, tuple[Architecture, ...]] = {
    "llama": (LLAMA, DECI),
    "mistral": (LLAMA, DECI),  # what a LLaMA with other head counts is written as
    "qwen2": (QWEN2, LLAMA, DECI),  # a LLaMA with biases on q, k and v
    "qwen3": (QWEN3,),
    "gpt2": (GPT2,),
}
"""Model type -> architectures that can hold some of its members, the first choice first."""
