"""Phi-3, 3.5 and 4-mini: LLaMA with q, k and v in one matrix, and the MLP's gate and up in another."""

from secateur.families.family import GROUPED, Block, Config, Family, Stock
from secateur.families.llama import FIELDS


def _long_rope(config: Config) -> bool:
    return bool({"short_factor", "long_factor"} & set(config.rope_parameters or ()))


PHI3 = Family(
    model_types=("phi3",),
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
        "self_attn.qkv_proj.weight": "(kv group head_dim + kv head_dim + kv head_dim) <- hidden",
        "self_attn.o_proj.weight": "hidden <- (kv group head_dim)",
        "mlp.gate_up_proj.weight": "(2 ffn) <- hidden",
        "mlp.down_proj.weight": "hidden <- ffn",
    },
    attention=Block(entry="self_attn", norm=("input_layernorm",)),
    mlp=Block(entry="mlp", norm=("post_attention_layernorm",)),
    attrs={
        "self_attn.num_key_value_groups": "group",
        "self_attn.num_key_value_heads": "kv",
        "self_attn.config.num_attention_heads": "kv group",
    },
    stock={
        "phi3": Stock(
            fields=FIELDS,
            heads_fixed={"the long RoPE factors must be as many as hidden / heads asks for, not head_dim": _long_rope},
        ),
    },
)
