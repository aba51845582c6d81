"""Unequal layers, written with their own modelling file: loaded everywhere, computing as the masked and compensated original."""

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import secateur
from secateur.families import modeling_secateur
from secateur.families.binding import bind
from secateur.families.unequal import Unequal, unequal_config
from secateur.streaming.checkpoint import Checkpoint
from tests.contract.elsewhere import GREEDY, Written, answers, computes_as, fresh, near
from tests.contract.masking import layers_of
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_tokens
from tests.contract.unequal_cases import COUNTS, Case, case, kept_of, matrix, original, prepared


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(ids, **GREEDY, **options)


def check(cases: Sequence[Case], tmp_path: Path) -> None:
    oracles, written = [], []
    for number, one in enumerate(cases):
        oracles.append(prepared(one, tmp_path / str(number)))
        out = tmp_path / str(number) / "out"
        written.append(Written(out=out, load=f"AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)"))
    ids, prompt = tiny_tokens(2, 12), tiny_tokens(2, 6, seed=1)
    for one, place, oracle, found in zip(cases, written, oracles, answers(written, ids, prompt, tmp_path), strict=True):
        assert computes_as(found, oracle, ids, prompt), one.name
        assert near(logits(secateur.load(place.out), ids), logits(oracle, ids)), one.name


SMOKE = [
    case("llama-tied", "kv", "ffn"), case("llama", "group", "ffn", bias=True), case("mistral", "kv", bias=True),
    case("phi3", "kv", "ffn", bias=True), case("gpt2", "kv", "ffn"), case("gpt_neox-no-bias", "kv", bias=True),
    case("gpt_neox", "kv", kv=(5, 5)),  # equal layers, and 5 heads do not divide 48 hidden channels
    case("bloom", "kv", kv=(5, 5)),  # equal layers, and the configuration has no field for it
]  # fmt: skip


def test_a_fresh_process_without_secateur_computes_as_the_original(tmp_path: Path) -> None:
    check(SMOKE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({of for of, changes in VARIANTS.values() if changes}))
def test_members_with_other_weights_in_a_fresh_process(model_type: str, tmp_path: Path) -> None:
    """The plain ones are in tests/recipes/test_matrix.py."""
    check(list(matrix(model_type)), tmp_path)


@pytest.fixture
def unequal(tmp_path: Path) -> Path:
    prepared(case("llama", "kv", "ffn", bias=True), tmp_path / "case")
    return tmp_path / "case" / "out"


def test_the_directory_carries_the_file_that_the_package_has(unequal: Path) -> None:
    assert (unequal / "modeling_secateur.py").read_bytes() == Path(modeling_secateur.__file__).read_bytes()
    body = json.loads((unequal / "config.json").read_text())
    assert body["model_type"] == "secateur_llama" and body["architectures"] == ["SecateurLlamaForCausalLM"]


def test_nothing_loads_it_wrongly(unequal: Path) -> None:
    for options in ({}, {"trust_remote_code": False}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModelForCausalLM.from_pretrained(unequal, **options)
    opted = {"allow_global_per_layer_attribute_access": True, "per_layer_config": {"0": {"intermediate_size": 20}}}
    for options in ({}, {"ignore_mismatched_sizes": True}, {**opted, "ignore_mismatched_sizes": True}):
        with pytest.raises(Exception, match="layers of this model have unequal sizes.*trust_remote_code=True"):
            LlamaForCausalLM.from_pretrained(unequal, **options)
    own = modeling_secateur.SecateurLlamaForCausalLM  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="random layers"):
        own.from_pretrained(unequal, ignore_mismatched_sizes=True)
    body = json.loads((unequal / "config.json").read_text())
    (unequal / "config.json").write_text(json.dumps({**body, "model_type": "llama"}))
    with pytest.raises(Exception, match="layers of this model have unequal sizes"):
        AutoModelForCausalLM.from_pretrained(unequal, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_stock_configuration_of_every_family_refuses_the_file(model_type: str, tmp_path: Path) -> None:
    model = original(model_type)
    target = bind(model.config)
    unequal_config(target, model.config, kept_of(model, case(model_type, "ffn"))).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="layers of this model have unequal sizes"):
        type(model.config).from_pretrained(tmp_path)


def test_a_configuration_of_other_layers_is_refused(unequal: Path) -> None:
    path = unequal / "config.json"
    body = json.loads(path.read_text())
    own = modeling_secateur.SecateurLlamaForCausalLM  # type: ignore[attr-defined]
    path.write_text(json.dumps({**body, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="describes 2 layers, and the model has 3"):
        own.from_pretrained(unequal)
    body["secateur"]["sizes"][0]["ffn"] = 99
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="wants the shape"):
        own.from_pretrained(unequal)


REGISTERED = """
import secateur, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
secateur.register()
secateur.register()
out = sys.argv[1]
for options in ({}, {"trust_remote_code": True}):
    model = AutoModelForCausalLM.from_pretrained(out, **options)
    assert type(model).__module__ == "secateur.families.modeling_secateur", type(model)
assert type(AutoConfig.from_pretrained(out)) is type(model.config)
assert AutoModel.from_pretrained(out).config.model_type == "secateur_llama"
fresh = AutoModelForCausalLM.from_config(model.config)
assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]
assert all(torch.isfinite(p).all() for p in fresh.parameters())
try:
    AutoModelForCausalLM.from_pretrained(out, ignore_mismatched_sizes=True)
except ValueError as error:
    print(error)
"""


def test_no_flag_is_needed_once_registered(unequal: Path, tmp_path: Path) -> None:
    said = fresh(REGISTERED, str(unequal), modules=tmp_path / "modules", code=True)
    assert "random layers" in said and not (tmp_path / "modules").exists(), "code of the directory was run"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_any_attention_that_the_family_supports(variant: str, attention: str, tmp_path: Path) -> None:
    oracle, ids = prepared(case(variant, "kv"), tmp_path / "case"), tiny_tokens(2, 12)
    own = type(secateur.load(tmp_path / "case/out"))
    model = own.from_pretrained(tmp_path / "case/out", attn_implementation=attention)
    layer: Any = layers_of(oracle)[0].self_attn
    assert near(logits(model, ids), logits(oracle, ids))
    other = "sdpa" if attention == "eager" else "eager"
    model.set_attn_implementation(other)
    assert {one.self_attn.config._attn_implementation for one in model.model.layers} == {other}
    assert type(layer) is type(model.model.layers[0].self_attn) and near(logits(model, ids), logits(oracle, ids))


def test_caches_hold_the_heads_of_each_layer(unequal: Path) -> None:
    model, prompt = secateur.load(unequal), tiny_tokens(2, 6, seed=1)
    cache = model(prompt, use_cache=True).past_key_values
    assert [layer.keys.shape[1] for layer in cache.layers] == list(COUNTS["kv"])
    expected = greedy(model, prompt)
    for kind in ("static", "offloaded") if torch.cuda.is_available() else ("static",):
        assert torch.equal(greedy(model, prompt, cache_implementation=kind), expected)


@pytest.mark.parametrize("variant", ["llama", "phi3", "bloom"])
def test_a_loaded_model_can_be_copied_pickled_and_converted(variant: str, tmp_path: Path) -> None:
    prepared(case(variant, "kv", "ffn"), tmp_path / "case")
    model, ids = secateur.load(tmp_path / "case/out"), tiny_tokens(2, 12)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, ids), logits(model, ids))
    half = secateur.load(tmp_path / "case/out", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert (logits(half, ids).float() - logits(model, ids)).norm() < 0.1 * logits(model, ids).norm()


def test_a_model_that_is_saved_again_is_read_by_everything(unequal: Path, tmp_path: Path) -> None:
    """It has no `secateur.json` then, and several files."""
    model = secateur.load(unequal)
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert (tmp_path / "again" / "modeling_secateur.py").is_file()
    again = Checkpoint.open(tmp_path / "again")
    assert again.num_parameters == model.num_parameters() and not again.unused
    assert [len(kept["kv"]) for kept in again.layers] == list(COUNTS["kv"])
    assert torch.equal(logits(secateur.load(tmp_path / "again"), tiny_tokens()), logits(model, tiny_tokens()))


def test_the_kept_heads_of_bloom_come_back_from_its_configuration(tmp_path: Path) -> None:
    one = case("bloom", "kv")
    prepared(one, tmp_path / "case")
    (tmp_path / "case/out/secateur.json").unlink()
    assert list(Checkpoint.open(tmp_path / "case/out").layers) == kept_of(original("bloom"), one)


def test_directories_of_before_still_load(tmp_path: Path) -> None:
    """The original configuration, and a plan in `secateur.json`."""
    one, ids = case("phi3", "kv", "ffn"), tiny_tokens(2, 12)
    oracle = prepared(one, tmp_path / "case")
    out = tmp_path / "case/out"
    (out / "modeling_secateur.py").unlink()
    original("phi3").config.save_pretrained(out)
    assert near(logits(secateur.load(out), ids), logits(oracle, ids))
    assert Checkpoint.open(out).layers


def test_a_bias_without_a_slot_is_added_to_every_layer() -> None:
    target = bind(original("phi3").config, biases=["mlp.down_proj.bias"])
    assert target.added == ("mlp.down_proj.bias",) and target.layer["mlp.down_proj.bias"].dims == ((("hidden",),),)
    assert bind(original("gpt2").config, biases=["mlp.c_proj.bias"]).added == ()
    config = unequal_config(target, target.config, [{"ffn": (1, 2)}, {}])
    assert Unequal.of(config).biases == ("mlp.down_proj.bias",)


def test_the_tokenizer_needs_no_flag(unequal: Path) -> None:
    from tests.recipes.tiny_checkpoint import tiny_tokenizer

    tiny_tokenizer().save_pretrained(unequal)
    assert AutoTokenizer.from_pretrained(unequal)("a b").input_ids == tiny_tokenizer()("a b").input_ids
