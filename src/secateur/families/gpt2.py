"""GPT-2: learned positions, and Conv1D matrices that are stored as in -> out."""

from secateur.families.family import MULTI_HEAD, Block, Config, Family, Stock


def _ffn(config: Config) -> int:
    return config.n_inner if config.n_inner is not None else 4 * config.hidden_size


GPT2 = Family(
    model_types=("gpt2",),
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
        "attn.c_attn.weight": "hidden -> (3 kv head_dim)",
        "attn.c_attn.bias": "(3 kv head_dim)",
        "attn.c_proj.weight": "(kv head_dim) -> hidden",
        "attn.c_proj.bias": "hidden",
        "ln_2.weight": "hidden",
        "ln_2.bias": "hidden",
        "mlp.c_fc.weight": "hidden -> ffn",
        "mlp.c_fc.bias": "ffn",
        "mlp.c_proj.weight": "ffn -> hidden",
        "mlp.c_proj.bias": "hidden",
    },
    attention=Block(entry="attn", norm=("ln_1",)),
    mlp=Block(entry="mlp", norm=("ln_2",)),
    attrs={"attn.split_size": "kv head_dim"},
    stock={"gpt2": Stock(fields={"n_inner": "ffn"}, biased=("attn.c_proj.weight", "mlp.c_proj.weight"))},
)
