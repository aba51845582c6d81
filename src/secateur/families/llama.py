"""LLaMA and its kin: RMS norms, rotary positions, grouped queries, a gated MLP."""

from secateur.families.family import GROUPED, Block, Family, Stock, before, each

FIELDS = {
    "intermediate_size": "ffn",
    "num_attention_heads": "kv group",
    "num_key_value_heads": "kv",
    "head_dim": "head_dim",
}
O_PROJ, DOWN_PROJ = "self_attn.o_proj.weight", "mlp.down_proj.weight"
ATTENTION_FLAG = {O_PROJ: "attention_bias"}

LLAMA = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    layers="model.layers",
    sizes=GROUPED,
    outer={
        "model.embed_tokens.weight": "vocab -> hidden",
        "model.norm.weight": "hidden",
        "lm_head.weight": "vocab <- hidden",
    },
    layer={
        "input_layernorm.weight": "hidden",
        "post_attention_layernorm.weight": "hidden",
        "pre_feedforward_layernorm.weight": "hidden",  # gemma2, gemma3
        "post_feedforward_layernorm.weight": "hidden",
        "self_attn.q_proj.weight": "(kv group head_dim) <- hidden",
        "self_attn.q_proj.bias": "(kv group head_dim)",
        "self_attn.k_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.k_proj.bias": "(kv head_dim)",
        "self_attn.v_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.v_proj.bias": "(kv head_dim)",
        "self_attn.o_proj.weight": "hidden <- (kv group head_dim)",
        "self_attn.o_proj.bias": "hidden",
        "self_attn.q_norm.weight": "head_dim",  # qwen3, gemma3
        "self_attn.k_norm.weight": "head_dim",
        "mlp.gate_proj.weight": "ffn <- hidden",
        "mlp.gate_proj.bias": "ffn",
        "mlp.up_proj.weight": "ffn <- hidden",
        "mlp.up_proj.bias": "ffn",
        "mlp.down_proj.weight": "hidden <- ffn",
        "mlp.down_proj.bias": "hidden",
    },
    attention=Block(entry="self_attn", norm=("input_layernorm",)),
    mlp=Block(entry="mlp", norm=("pre_feedforward_layernorm", "post_attention_layernorm")),
    attrs={"self_attn.num_key_value_groups": "group"},
    depth={"layer_types": each("layer_types"), "max_window_layers": before("max_window_layers")},  # qwen, gemma2, gemma3
    stock={
        "llama": Stock(
            fields=FIELDS,
            heads_divide_hidden=True,
            relabel=("mistral", "MistralForCausalLM"),
            relabel_fields={"sliding_window": None},
            bias_flags={O_PROJ: "attention_bias", DOWN_PROJ: "mlp_bias"},
        ),
        "mistral": Stock(fields=FIELDS),
        "qwen2": Stock(fields=FIELDS),
        "qwen3": Stock(fields=FIELDS, bias_flags=ATTENTION_FLAG),
        "gemma": Stock(fields=FIELDS, bias_flags=ATTENTION_FLAG),
        "gemma2": Stock(fields=FIELDS, heads_divide_hidden=True, bias_flags=ATTENTION_FLAG),
        "gemma3_text": Stock(fields=FIELDS, heads_divide_hidden=True, bias_flags=ATTENTION_FLAG),
    },
)
