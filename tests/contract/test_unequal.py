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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

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
