"""BLOOM: positions as ALiBi slopes, one for each head, computed outside the layers from the number of heads."""

from secateur.families.family import MULTI_HEAD, Block, Family, Stock

BLOOM = Family(
    model_types=("bloom",),
    layers="transformer.h",
    sizes={**MULTI_HEAD, "ffn": lambda c: 4 * c.hidden_size},
    outer={
        "transformer.word_embeddings.weight": "vocab -> hidden",
        "transformer.word_embeddings_layernorm.weight": "hidden",
        "transformer.word_embeddings_layernorm.bias": "hidden",
        "transformer.ln_f.weight": "hidden",
        "transformer.ln_f.bias": "hidden",
        "lm_head.weight": "vocab <- hidden",
    },
    layer={
        "input_layernorm.weight": "hidden",
        "input_layernorm.bias": "hidden",
        "self_attention.query_key_value.weight": "(kv 3 head_dim) <- hidden",
        "self_attention.query_key_value.bias": "(kv 3 head_dim)",
        "self_attention.dense.weight": "hidden <- (kv head_dim)",
        "self_attention.dense.bias": "hidden",
        "post_attention_layernorm.weight": "hidden",
        "post_attention_layernorm.bias": "hidden",
        "mlp.dense_h_to_4h.weight": "ffn <- hidden",
        "mlp.dense_h_to_4h.bias": "ffn",
        "mlp.dense_4h_to_h.weight": "hidden <- ffn",
        "mlp.dense_4h_to_h.bias": "hidden",
    },
    attention=Block(entry="self_attention", norm=("input_layernorm",)),
    mlp=Block(entry="mlp", norm=("post_attention_layernorm",)),
    attrs={"self_attention.num_heads": "kv"},
    inputs={"alibi": "(batch kv) 1 key"},
    returns_tuple=True,
    stock={"bloom": Stock(biased=("self_attention.dense.weight", "mlp.dense_4h_to_h.weight"))},
)
