"""Unequal layers, written with their own modelling file: loaded everywhere, computing as the masked and compensated original."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import secateur
from secateur import axes
from secateur.export.huggingface import save_config, save_record
from secateur.export.stock import bound_with_biases, shape_of
from secateur.families import family_for, modeling_secateur
from secateur.families.binding import bind
from secateur.families.unequal import Unequal, unequal_config
from secateur.plan import Plan
from secateur.recipes.scope import new_biases
from secateur.statistics.moments import Moments
from secateur.streaming.checkpoint import Checkpoint
from secateur.surgery.compensate import BiasCompensation, NoCompensation
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import Verifier
from secateur.surgery.write import Shards, write
from tests.contract.masking import draw_kept, layers_of, masked, naive_mask, sizes_of
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_model, tiny_tokens

COUNTS = {"ffn": (20, 11), "kv": (3, 2), "group": (1, 2)}
"""Units that stay in each of the two layers."""
Means = Callable[[int, str], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    variant: str
    pruned: tuple[str, ...]
    bias: bool
    counts: Mapping[str, Sequence[int]]

    @property
    def name(self) -> str:
        return f"{self.variant} {'+'.join(self.pruned)} {'bias' if self.bias else 'none'}"


def case(variant: str, *pruned: str, bias: bool = False, **counts: Sequence[int]) -> Case:
    return Case(variant=variant, pruned=pruned, bias=bias, counts={**COUNTS, **counts})


def original(variant: str, **options: Any) -> nn.Module:
    model_type, overrides = VARIANTS[variant]
    return tiny_model(model_type, dtype=torch.float32, **{**overrides, **options})


def matrix(model_type: str) -> Iterator[Case]:
    for variant, (of, _) in VARIANTS.items():
        if of != model_type:
            continue
        sizes = sizes_of(original(variant))
        able = tuple(axis for axis in ("ffn", "kv") if sizes.get(axis, 1) > 1)
        for pruned in [*((axis,) for axis in able), *([able] if len(able) > 1 else [])]:
            for bias in (False, True):
                yield case(variant, *pruned, bias=bias)


def kept_of(model: nn.Module, one: Case) -> list[axes.Kept]:
    rng, sizes = random.Random(0), sizes_of(model)
    counts = [{axis: one.counts[axis][i] for axis in one.pruned} for i in range(2)]
    return [draw_kept(sizes, one.pruned, rng, count) for count in counts]


def mean_of(model: nn.Module, layer: int, module: str) -> torch.Tensor:
    """What stands for the mean of a reader's input, float64: any numbers do."""
    owner: Any = layers_of(model)[layer].get_submodule(module)
    width = owner.nx if hasattr(owner, "nx") else owner.in_features
    return torch.randn(width, generator=torch.Generator().manual_seed(100 * layer + len(module)), dtype=torch.float64)


def compensated(model: nn.Module, layers: Sequence[axes.Kept], one: Case) -> nn.Module:
    """The original at full size: dropped units masked, and their mean contribution in the reader's bias."""
    family, sizes, result = family_for(model.config), sizes_of(model), masked(model, layers)
    for number, kept in enumerate(layers if one.bias else ()):
        dense, layer = layers_of(model)[number], layers_of(result)[number]
        present = {name for name, _ in dense.named_parameters()}
        for name in [n for n in present if any(axes.parse(family.layer[n]).reads(axis) for axis in one.pruned)]:
            spec, path = axes.parse(family.layer[name]), name.rpartition(".")[0]
            left = ~naive_mask(spec.dims[min(spec.inputs)], sizes, kept)
            weight = dense.get_parameter(name).detach().double()
            shift = (weight if 1 in spec.inputs else weight.T)[:, left] @ mean_of(model, number, path)[left]
            module = layer.get_submodule(path)
            before = 0 if module.bias is None else module.bias.detach()
            module.bias = nn.Parameter((before + shift).float())
    return result


def written(model: Any, layers: Sequence[axes.Kept], one: Case, directory: Path, *, shard: int = 10**9) -> Path:
    """Written and checked as a job does it."""
    model.save_pretrained(directory / "model")
    source, out = Checkpoint.open(directory / "model"), directory / "out"
    binding, how = source.binding, BiasCompensation() if one.bias else NoCompensation()
    plan = Plan(
        model_type=binding.model_type, fingerprint=source.fingerprint, sizes=dict(binding.sizes), layers=tuple(layers)
    )  # fmt: skip
    added = new_biases(binding, how, one.pruned)
    target = bound_with_biases(binding, added)

    def seen(layer: int, module: str) -> Any:
        mean = mean_of(model, layer, module)
        return {Moments: Moments(2, mean, torch.zeros_like(mean))}

    rebuild = Rebuild(source=source, target=target, plan=plan, compensation=how, seen=seen)
    shape = shape_of(binding, [plan.layer_sizes(i) for i in plan.remaining], added)
    assert not shape.stock and shape.self_contained
    out.mkdir()
    list(write(rebuild, source, Shards.of(rebuild, source, shard, own=True), out, Verifier(rebuild, tiny_tokens(2, 9))))
    shape.config.dtype = torch.float32
    save_config(unequal_config(target, shape.config, layers), out)
    save_record({"stock": False, "plan": plan.to_dict(), "provenance": {}}, out)
    return out


def prepared(one: Case, directory: Path) -> nn.Module:
    """The directory of a case, and the model at full size that it must compute as."""
    directory.mkdir(parents=True)
    model = original(one.variant)
    layers = kept_of(model, one)
    written(model, layers, one, directory)
    save_file({"ids": tiny_tokens(2, 12), "prompt": tiny_tokens(2, 6, seed=1)}, directory / "given.safetensors")
    return compensated(model, layers, one)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=26, do_sample=False, pad_token_id=0, eos_token_id=None, **options)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1))


def fresh(script: str | Path, *arguments: str, modules: Path, code: bool = False) -> str:
    """What another process says, which shares nothing with this one."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-c", str(script)] if code else ["-I", str(script)]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(cases: Sequence[Case], tmp_path: Path) -> None:
    places = {one.name: tmp_path / str(i) for i, one in enumerate(cases)}
    oracles = {one.name: prepared(one, places[one.name]) for one in cases}
    worker = Path(__file__).with_name("unequal_worker.py")
    assert fresh(worker, *map(str, places.values()), modules=tmp_path / "modules").strip().endswith("done")
    for name, oracle in oracles.items():
        given, found = load_file(places[name] / "given.safetensors"), load_file(places[name] / "found.safetensors")
        assert near(found["logits"], logits(oracle, given["ids"])), name
        expected = greedy(oracle, given["prompt"])
        assert torch.equal(found["greedy"], expected) and torch.equal(found["uncached"], expected), name
        for what in ("logits", "greedy"):
            assert torch.equal(found[f"again {what}"], found[what]), name
        assert near(logits(secateur.load(places[name] / "out"), given["ids"]), logits(oracle, given["ids"])), name


SMOKE = [
    case("llama-tied", "kv", "ffn"), case("llama", "group", "ffn", bias=True), case("mistral", "kv", bias=True),
    case("phi3", "kv", "ffn", bias=True), case("gpt2", "kv", "ffn"), case("gpt_neox-no-bias", "kv", bias=True),
    case("gpt_neox", "kv", kv=(5, 5)),  # equal layers, and 5 heads do not divide 48 hidden channels
    case("bloom", "kv", kv=(5, 5)),  # equal layers, and the configuration has no field for it
]  # fmt: skip


def test_a_fresh_process_without_secateur_computes_as_the_original(tmp_path: Path) -> None:
    check(SMOKE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_variant_in_a_fresh_process(model_type: str, tmp_path: Path) -> None:
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
    for options in ({}, {"ignore_mismatched_sizes": True}):
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
