"""Models with unequal layers on disk, and the models at full size that they must compute as."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import axes
from secateur.export.huggingface import save_config, save_record
from secateur.export.stock import bound_with_biases, shape_of
from secateur.families import family_for
from secateur.families.unequal import unequal_config
from secateur.plan import Plan
from secateur.recipes.scope import new_biases
from secateur.statistics.moments import Moments
from secateur.streaming.checkpoint import Checkpoint
from secateur.surgery.compensate import BiasCompensation, NoCompensation
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import Verifier
from secateur.surgery.write import Shards, write
from tests.contract.masking import draw_kept, layers_of, masked, naive_mask, sizes_of
from tests.contract.tiny import VARIANTS, longer, tiny_model, tiny_tokens

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
    return tiny_model(model_type, dtype=torch.float32, **{**longer(model_type), **overrides, **options})


def matrix(model_type: str) -> Iterator[Case]:
    for variant, (of, _) in VARIANTS.items():
        if of != model_type or variant == model_type:
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
    return compensated(model, layers, one)
