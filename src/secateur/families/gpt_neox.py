"""GPT-NeoX and Pythia: q, k and v of each head side by side in one matrix; attention and MLP in parallel."""

from secateur.families.family import MULTI_HEAD, Block, Family, Stock

GPT_NEOX = Family(
    model_types=("gpt_neox",),
    layers="gpt_neox.layers",
    sizes={**MULTI_HEAD, "ffn": lambda c: c.intermediate_size},
    outer={
        "gpt_neox.embed_in.weight": "vocab -> hidden",
        "gpt_neox.final_layer_norm.weight": "hidden",
        "gpt_neox.final_layer_norm.bias": "hidden",
        "lm_head.weight": "vocab <- hidden",
    },
    layer={
        "input_layernorm.weight": "hidden",
        "input_layernorm.bias": "hidden",
        "post_attention_layernorm.weight": "hidden",
        "post_attention_layernorm.bias": "hidden",
        "attention.query_key_value.weight": "(kv 3 head_dim) <- hidden",
        "attention.query_key_value.bias": "(kv 3 head_dim)",
        "attention.dense.weight": "hidden <- (kv head_dim)",
        "attention.dense.bias": "hidden",
        "mlp.dense_h_to_4h.weight": "ffn <- hidden",
        "mlp.dense_h_to_4h.bias": "ffn",
        "mlp.dense_4h_to_h.weight": "hidden <- ffn",
        "mlp.dense_4h_to_h.bias": "hidden",
    },
    attention=Block(entry="attention", norm=("input_layernorm",)),
    mlp=Block(entry="mlp", norm=("post_attention_layernorm",)),
    renames={"embed_out.weight": "lm_head.weight"},
    stock={
        "gpt_neox": Stock(
            fields={"intermediate_size": "ffn"},
            heads_divide_hidden=True,
            bias_flags={"attention.dense.weight": "attention_bias"},
            biased=("mlp.dense_4h_to_h.weight",),
        )
    },
)
