"""Two ways to leave units out of a model: for real, and by an oracle that shares no index arithmetic with `secateur.axes`."""

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur import axes
from secateur.axes import Dim, Kept, Sizes
from secateur.families import family_for
from secateur.families.family import Family
from secateur.families.resize import resize_layer, slice_inputs


def sizes_of(model: nn.Module) -> dict[str, int]:
    """Axis sizes of a model, from its configuration."""
    return {axis: size(model.config) for axis, size in family_for(model.config).sizes.items()}


def layers_of(model: nn.Module) -> nn.ModuleList:
    return model.get_submodule(family_for(model.config).layers)


def specs_of(model: nn.Module) -> dict[str, axes.Spec]:
    """Full name -> axes, for every weight the family's table names, whether this model has it or not."""
    family = family_for(model.config)
    inner = {f"{family.layers}.{i}.{n}": s for i in range(len(layers_of(model))) for n, s in family.layer.items()}
    return {name: axes.parse(text) for name, text in {**family.outer, **inner}.items()}


def draw_kept(sizes: Sizes, pruned: Iterable[str], rng: random.Random, counts: Mapping[str, int] | None = None) -> Kept:
    """Random kept sets of one layer for the axes in `pruned`, at least one unit each; `counts` fixes how many stay."""

    def some(axis: str, count: int) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(sizes[axis]), count)))

    count = {axis: (counts or {}).get(axis) or rng.randint(1, sizes[axis]) for axis in pruned}
    kept: dict[str, Sequence[Any]] = {axis: some(axis, count[axis]) for axis in pruned if axis != "group"}
    if "group" in count:
        kept["group"] = tuple(some("group", count["group"]) for _ in kept.get("kv", range(sizes["kv"])))
    return kept


def naive_mask(dim: Dim, sizes: Sizes, kept: Kept) -> torch.Tensor:
    """True where a position along a dimension stays: looks every position up by its coordinates."""
    flags: list[bool] = []
    for term in dim:
        places = product(*(range(axes.axis_size(name, sizes)) for name in term))
        flags += [_stays(dict(zip(term, place, strict=True)), sizes, kept) for place in places]
    return torch.tensor(flags)


def _stays(at: Mapping[str, int], sizes: Sizes, kept: Kept) -> bool:
    if any(axis in at and at[axis] not in kept.get(axis, range(sizes[axis])) for axis in ("ffn", "kv") if axis in sizes):
        return False
    if "group" in at and "group" in kept:
        heads = list(kept.get("kv", range(sizes["kv"])))
        return at["group"] in kept["group"][heads.index(at["kv"])]
    return True


def masked(model: nn.Module, layers: Sequence[Kept]) -> nn.Module:
    """A copy at full size whose readers give the dropped units the weight zero."""
    family, sizes, result = family_for(model.config), sizes_of(model), copy.deepcopy(model)
    with torch.no_grad():
        for layer, kept in zip(layers_of(result), layers, strict=True):
            for name, parameter in layer.named_parameters():
                spec = axes.parse(family.layer[name])
                for d in spec.inputs:
                    shape = [-1 if e == d else 1 for e in range(parameter.dim())]
                    parameter.mul_(naive_mask(spec.dims[d], sizes, kept).view(shape))
    return result


def poisoned(model: nn.Module, layers: Sequence[Kept]) -> nn.Module:
    """A copy at full size with NaN in every number of every weight that belongs to a dropped unit."""
    family, sizes, result = family_for(model.config), sizes_of(model), copy.deepcopy(model)
    with torch.no_grad():
        for layer, kept in zip(layers_of(result), layers, strict=True):
            for name, parameter in layer.named_parameters():
                for d, dim in enumerate(axes.parse(family.layer[name]).dims):
                    parameter.transpose(0, d)[~naive_mask(dim, sizes, kept)] = float("nan")
    return result


def sliced(model: nn.Module, layers: Sequence[Kept], family: Family | None = None) -> nn.Module:
    """A copy whose weights are really smaller; `family` replaces the model's own table."""
    family, sizes, result = family or family_for(model.config), sizes_of(model), copy.deepcopy(model)
    for layer, kept in zip(layers_of(result), layers, strict=True):
        for name, parameter in list(layer.named_parameters()):
            owner, _, last = name.rpartition(".")
            small = axes.select(parameter.detach(), axes.parse(family.layer[name]), sizes, kept)
            setattr(layer.get_submodule(owner), last, nn.Parameter(small, requires_grad=False))
        resize_layer(layer, family, axes.kept_sizes(sizes, kept))

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept = kept) -> Any:
            return args, slice_inputs(family, kwargs, sizes, kept)

        layer.register_forward_pre_hook(hook, with_kwargs=True)
    return result


class Float64(TorchFunctionMode):
    """Float64 all the way: model classes compute norms, softmax and GPT-Neo's scores in float32, whatever their weights are.

    Rounding to float32 would hide small faults, and once in a while make an ulp of float64 into one of float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if a is torch.float32 else a for a in args]
        return func(*args, **{k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()})


def forward(model: nn.Module, tokens: torch.Tensor, **kwargs: Any) -> Any:
    """The model's output, computed in float64 throughout."""
    with torch.no_grad(), Float64():
        return model(tokens, **kwargs)


def logits(model: nn.Module, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """[batch, position, vocab], computed in float64 throughout."""
    return forward(model, tokens, **kwargs).logits
