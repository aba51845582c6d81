"""Phi-1, 1.5 and 2: one layer norm feeds attention and a plain MLP in parallel; a bias everywhere."""

from secateur.families.family import GROUPED, Block, Family, Stock
from secateur.families.llama import FIELDS

PHI = Family(
    model_types=("phi",),
    layers="model.layers",
    sizes=GROUPED,
    outer={
        "model.embed_tokens.weight": "vocab -> hidden",
        "model.final_layernorm.weight": "hidden",
        "model.final_layernorm.bias": "hidden",
        "lm_head.weight": "vocab <- hidden",
        "lm_head.bias": "vocab",
    },
    layer={
        "input_layernorm.weight": "hidden",
        "input_layernorm.bias": "hidden",
        "self_attn.q_proj.weight": "(kv group head_dim) <- hidden",
        "self_attn.q_proj.bias": "(kv group head_dim)",
        "self_attn.k_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.k_proj.bias": "(kv head_dim)",
        "self_attn.v_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.v_proj.bias": "(kv head_dim)",
        "self_attn.q_layernorm.weight": "head_dim",  # qk_layernorm
        "self_attn.q_layernorm.bias": "head_dim",
        "self_attn.k_layernorm.weight": "head_dim",
        "self_attn.k_layernorm.bias": "head_dim",
        "self_attn.dense.weight": "hidden <- (kv group head_dim)",
        "self_attn.dense.bias": "hidden",
        "mlp.fc1.weight": "ffn <- hidden",
        "mlp.fc1.bias": "ffn",
        "mlp.fc2.weight": "hidden <- ffn",
        "mlp.fc2.bias": "hidden",
    },
    attention=Block(entry="self_attn", norm=("input_layernorm",)),
    mlp=Block(entry="mlp", norm=("input_layernorm",)),
    attrs={"self_attn.num_key_value_groups": "group"},
    stock={
        "phi": Stock(
            fields=FIELDS,
            heads_fixed={"`qk_layernorm` sizes its norms as hidden / heads and not by head_dim": lambda c: c.qk_layernorm},
            biased=("self_attn.dense.weight", "mlp.fc2.weight"),
        ),
    },
)
