"""Every statement of the tables' `stock`, tried on the real class: a shape it holds loads with equal logits, others do not."""

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import axes
from secateur.families import describe, family_for
from secateur.families.family import Stock
from tests.contract.masking import draw_kept, layers_of, logits, masked, sizes_of, sliced, specs_of
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_config, tiny_model, tiny_tokens

EXACT = {"rtol": 1e-9, "atol": 1e-9}
FLAGS = ("attention_bias", "mlp_bias", "enable_bias", "bias", "use_bias")
LONG_ROPE = {
    "hidden_size": 64,  # as many factors as 64 / 8 heads asks for, and neither 64 / 6 nor 64 / 4
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 2.5, 3.0],
    },
}  # fmt: skip
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in MODEL_TYPES},
    "llama-bias": VARIANTS["llama-bias"],
    "phi-qk-norm": VARIANTS["phi-qk-norm"],
    "phi3-head-dim": VARIANTS["phi3-head-dim"],
    "phi3-long-rope": ("phi3", LONG_ROPE),
    "gpt2-default-ffn": VARIANTS["gpt2-default-ffn"],
    "gpt_neo-default-ffn": VARIANTS["gpt_neo-default-ffn"],
}
# How many units stay. With 32 hidden channels, 6 heads do not divide them, and 4 do.
SHAPES = {
    "ffn": {"ffn": 20},
    "kv, dividing": {"kv": 2},
    "kv, not dividing": {"kv": 3},
    "group": {"group": 1},
    "all": {"ffn": 20, "kv": 2, "group": 1},
}


CASES = [
    (name, shape)
    for name, (model_type, _) in MEMBERS.items()
    for shape, counts in SHAPES.items()
    if set(counts) <= set(family_for(tiny_config(model_type)).sizes)
]


def member(name: str) -> torch.nn.Module:
    model_type, overrides = MEMBERS[name]
    hidden = {"n_embd": 32} if model_type == "gpt2" else {"hidden_size": 32}
    return tiny_model(model_type, **{**hidden, **overrides})


def uniform_plan(model: torch.nn.Module, counts: Mapping[str, int]) -> list[axes.Kept]:
    """Another kept set in every layer, of the same sizes."""
    rng = random.Random(0)
    return [draw_kept(sizes_of(model), counts, rng, counts) for _ in layers_of(model)]


def stock_config(model: torch.nn.Module, counts: Mapping[str, int]) -> dict[str, Any]:
    """The configuration file with the fields of the table set to the pruned sizes."""
    family = family_for(model.config)
    sizes = {**sizes_of(model), **counts}
    fields = family.stock[model.config.model_type].fields
    return {**model.config.to_dict(), **{f: axes.term_size(tuple(product.split()), sizes) for f, product in fields.items()}}


def hopeful(model: torch.nn.Module, body: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Every field that could name a pruned size set to it, whatever the table says."""
    sizes = {**sizes_of(model), **counts}
    wanted = dict.fromkeys(("n_inner", "ffn_dim", "intermediate_size"), sizes["ffn"])
    wanted |= {"num_attention_heads": sizes["kv"] * sizes.get("group", 1), "num_key_value_heads": sizes["kv"]}
    wanted |= {"head_dim": sizes["head_dim"]}
    return {**body, **{model.config.attribute_map.get(field, field): size for field, size in wanted.items()}}


def load(body: Mapping[str, Any], weights: torch.nn.Module, path: Path) -> torch.nn.Module | None:
    """The plain loader's model, or None where it refuses the shapes."""
    config = AutoConfig.for_model(body["model_type"])
    config.__dict__.update({k: v for k, v in body.items() if k != "model_type"})  # not checked here, but by the loader
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config.to_json_string(use_diff=False))
    tensors = {name: p.detach().contiguous() for name, p in weights.named_parameters()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    except (StrictDataclassError, ValueError, RuntimeError):
        return None


def holdable(stock: Stock, model: torch.nn.Module, counts: Mapping[str, int]) -> bool:
    """What the table says about one shape, spelled out."""
    named = {axis for product in stock.fields.values() for axis in product.split()}
    sizes = {**sizes_of(model), **counts}
    if not set(counts) <= named:
        return False
    if not {"kv", "group"} & set(counts):
        return True
    fixed = any(condition(model.config) for condition in stock.heads_fixed.values())
    divides = sizes["hidden"] % (sizes["kv"] * sizes.get("group", 1)) == 0
    return not fixed and (divides or not stock.heads_divide_hidden)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_plain_loader_accepts_exactly_what_the_table_says(name: str, shape: str, tmp_path: Path) -> None:
    model, tokens = member(name), tiny_tokens()
    counts = SHAPES[shape]
    plan = uniform_plan(model, counts)
    small = sliced(model, plan)
    stock = family_for(model.config).stock[model.config.model_type]
    body = stock_config(model, counts)
    loaded = load(body, small, tmp_path / "pruned")
    if holdable(stock, model, counts):
        assert loaded is not None
        assert {n: tuple(p.shape) for n, p in loaded.named_parameters()} == {
            n: axes.shape(specs_of(model)[n], {**sizes_of(model), **counts}) for n, _ in model.named_parameters()
        }
        torch.testing.assert_close(logits(loaded, tokens), logits(masked(model, plan), tokens), **EXACT)
    else:
        assert loaded is None
        assert load(hopeful(model, body, counts), small, tmp_path / "hopeful") is None


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_whole_model_loads(model_type: str, tmp_path: Path) -> None:
    """Guards the test above: a refusal there is about the shapes."""
    model = member(model_type)
    loaded = load(stock_config(model, {}), model, tmp_path / "whole")
    assert loaded is not None
    torch.testing.assert_close(logits(loaded, tiny_tokens()), logits(model, tiny_tokens()), **EXACT)


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "overrides", [{}, {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}], ids=["plain", "llama3"]
)
def test_relabelled_llama_has_identical_logits(overrides: dict[str, Any], tmp_path: Path) -> None:
    model, tokens = tiny_model("llama", hidden_size=32, **overrides), tiny_tokens(length=30)
    counts = {"kv": 3}
    stock = family_for(model.config).stock["llama"]
    assert stock.relabel is not None
    small = sliced(model, uniform_plan(model, counts))
    body = stock_config(model, counts)
    assert load(body, small, tmp_path / "refused") is None
    model_type, architecture = stock.relabel
    relabelled = load(
        {**body, "model_type": model_type, "architectures": [architecture], **stock.relabel_fields}, small, tmp_path / "mistral"
    )
    assert relabelled is not None
    assert type(relabelled).__name__ == architecture
    with torch.no_grad():
        assert torch.equal(relabelled(tokens).logits, small(tokens).logits)


def test_relabelled_llama_loses_biases() -> None:
    """Why a relabelled model must have none."""
    model = AutoModelForCausalLM.from_config(tiny_config("mistral", attention_bias=True, mlp_bias=True))
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def readers(model_type: str) -> list[str]:
    family = family_for(tiny_config(model_type))
    specs = {name: axes.parse(text) for name, text in family.layer.items()}
    return [name for name, spec in specs.items() if spec.reads("kv") or spec.reads("ffn")]


def has_bias(model_type: str, reader: str, overrides: Mapping[str, Any]) -> bool:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides))
    present = {name for name, _ in layers_of(model)[0].named_parameters()}
    return reader.removesuffix("weight") + "bias" in present


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_readers_have_the_bias_slots_that_the_table_says(model_type: str) -> None:
    stock = family_for(tiny_config(model_type)).stock[model_type]
    members = [overrides for other, overrides in VARIANTS.values() if other == model_type]
    assert len(readers(model_type)) == 2
    assert set(stock.bias_flags) | set(stock.biased) <= set(readers(model_type))
    for reader in readers(model_type):
        if reader in stock.biased:
            members += [dict.fromkeys(FLAGS, False)]
            assert all(has_bias(model_type, reader, overrides) for overrides in members)
        elif reader in stock.bias_flags:
            flag = stock.bias_flags[reader]
            assert [has_bias(model_type, reader, {flag: value}) for value in (True, False)] == [True, False]
        else:
            assert not any(has_bias(model_type, reader, o) for o in [*members, dict.fromkeys(FLAGS, True)])


def test_flags_that_bring_other_biases_leave_the_logits_alone_when_those_are_zero(tmp_path: Path) -> None:
    model, tokens = member("llama"), tiny_tokens()
    body = {**stock_config(model, {}), "attention_bias": True, "mlp_bias": True}
    biased = copy.deepcopy(model)
    for layer in layers_of(biased):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=torch.float64))
    loaded = load(body, biased, tmp_path / "biased")
    assert loaded is not None
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), **EXACT)


def test_the_page_is_the_generated_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert page.read_text() == describe.markdown(), "run: python -m secateur.families.describe > docs/families.md"
