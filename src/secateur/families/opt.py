"""OPT: learned positions; opt-350m has a narrower embedding with projections, and norms after the residual."""

from secateur.families.family import MULTI_HEAD, Block, Family, Stock

OPT = Family(
    model_types=("opt",),
    layers="model.decoder.layers",
    sizes={
        **MULTI_HEAD,
        "ffn": lambda c: c.ffn_dim,
        "embed": lambda c: c.word_embed_proj_dim,
        "position": lambda c: c.max_position_embeddings + 2,  # the class keeps two rows in front of the positions
    },
    outer={
        "model.decoder.embed_tokens.weight": "vocab -> embed",
        "model.decoder.project_in.weight": "hidden <- embed",  # opt-350m
        "model.decoder.embed_positions.weight": "position -> hidden",
        "model.decoder.final_layer_norm.weight": "hidden",
        "model.decoder.final_layer_norm.bias": "hidden",
        "model.decoder.project_out.weight": "embed <- hidden",  # opt-350m
        "lm_head.weight": "vocab <- embed",
    },
    layer={
        "self_attn_layer_norm.weight": "hidden",
        "self_attn_layer_norm.bias": "hidden",
        "self_attn.q_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.q_proj.bias": "(kv head_dim)",
        "self_attn.k_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.k_proj.bias": "(kv head_dim)",
        "self_attn.v_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.v_proj.bias": "(kv head_dim)",
        "self_attn.out_proj.weight": "hidden <- (kv head_dim)",
        "self_attn.out_proj.bias": "hidden",
        "final_layer_norm.weight": "hidden",
        "final_layer_norm.bias": "hidden",
        "fc1.weight": "ffn <- hidden",
        "fc1.bias": "ffn",
        "fc2.weight": "hidden <- ffn",
        "fc2.bias": "hidden",
    },
    attention=Block(entry="self_attn", norm=("self_attn_layer_norm",)),
    mlp=Block(entry="fc1", norm=("final_layer_norm",), through=("fc1", "activation_fn")),
    attrs={"self_attn.num_heads": "kv"},
    stock={
        "opt": Stock(
            fields={"ffn_dim": "ffn"},
            bias_flags={"self_attn.out_proj.weight": "enable_bias", "fc2.weight": "enable_bias"},
        )
    },
)
