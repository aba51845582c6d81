"""GPT-Neo: GPT-2 with linear layers, and attention that is global and local by turns."""

from collections.abc import Sequence

from secateur.families.family import MULTI_HEAD, Block, Config, Family, Stock, each


def _ffn(config: Config) -> int:
    return config.intermediate_size if config.intermediate_size is not None else 4 * config.hidden_size


def _attention_types(config: Config, stay: Sequence[int]) -> list[list[list[str] | int]]:
    """As the class spells `attention_layers`: patterns, and how often each is repeated."""
    return [[[config.attention_layers[i] for i in stay], 1]]


GPT_NEO = Family(
    model_types=("gpt_neo",),
    layers="transformer.h",
    sizes={**MULTI_HEAD, "ffn": _ffn, "position": lambda c: c.max_position_embeddings},
    outer={
        "transformer.wte.weight": "vocab -> hidden",
        "transformer.wpe.weight": "position -> hidden",
        "transformer.ln_f.weight": "hidden",
        "transformer.ln_f.bias": "hidden",
        "lm_head.weight": "vocab <- hidden",
    },
    layer={
        "ln_1.weight": "hidden",
        "ln_1.bias": "hidden",
        "attn.attention.q_proj.weight": "(kv head_dim) <- hidden",
        "attn.attention.k_proj.weight": "(kv head_dim) <- hidden",
        "attn.attention.v_proj.weight": "(kv head_dim) <- hidden",
        "attn.attention.out_proj.weight": "hidden <- (kv head_dim)",
        "attn.attention.out_proj.bias": "hidden",
        "ln_2.weight": "hidden",
        "ln_2.bias": "hidden",
        "mlp.c_fc.weight": "ffn <- hidden",
        "mlp.c_fc.bias": "ffn",
        "mlp.c_proj.weight": "hidden <- ffn",
        "mlp.c_proj.bias": "hidden",
    },
    attention=Block(entry="attn", norm=("ln_1",)),
    mlp=Block(entry="mlp", norm=("ln_2",)),
    attrs={"attn.attention.num_heads": "kv"},
    returns_tuple=True,
    depth={"attention_types": _attention_types, "attention_layers": each("attention_layers")},
    stock={
        "gpt_neo": Stock(fields={"intermediate_size": "ffn"}, biased=("attn.attention.out_proj.weight", "mlp.c_proj.weight"))
    },
)
