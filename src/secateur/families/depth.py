"""A configuration with fewer layers; refused where a layer would compute something else under its new number."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur.errors import UserError
from secateur.families.binding import Binding, bind
from secateur.families.family import Config, Family

SCALARS = (bool, int, float, str, type(None))


def shortened(config: Config, family: Family, stay: Sequence[int]) -> Config:
    """A copy for the layers `stay` (ascending) alone, every field that says something of each layer in step."""
    new = copy.deepcopy(config)
    # Into the object itself: a strict configuration class checks each assignment against fields that are not in step yet.
    values = {name: chosen(config, stay) for name, chosen in family.depth.items() if hasattr(config, name)}
    for name, value in {**values, "num_hidden_layers": len(stay)}.items():
        new.__dict__[config.attribute_map.get(name, name)] = value
    return new


def check_renumbered(binding: Binding, stay: Sequence[int]) -> None:
    """Raises `UserError` if the model's class makes another layer of one of `stay` when only these are left.

    Compares what the modules of a layer hold besides weights: numbers, words and buffers. The layer's own number may change.
    """
    result = bind(shortened(binding.config, binding.family, stay), dtype=binding.model.dtype)  # type: ignore[arg-type]
    for new, old in enumerate(stay):
        before, after = _facts(binding.layer_module(old)), _facts(result.layer_module(new))
        for name in before.keys() | after.keys():
            if not _same(before.get(name), after.get(name), (old, new)):
                raise UserError(
                    f"layer {old} of this {binding.model_type} model would become layer {new} and then compute something else: its "
                    f"`{name}` depends on the layer's number, and no configuration can say otherwise. Whole layers cannot leave "
                    f"this model except from its end; prune heads and channels instead, with another --method."
                )


def _facts(layer: nn.Module) -> Mapping[str, Any]:
    """Attribute path -> what a module holds besides weights and configuration, as far as it can be compared."""
    found: dict[str, Any] = dict(layer.named_buffers())
    for path, module in layer.named_modules():
        held = {name: value for name, value in vars(module).items() if isinstance(value, SCALARS)}
        found |= {f"{path}.{name}".lstrip("."): value for name, value in held.items()}
    return found


def _same(before: Any, after: Any, numbers: tuple[int, int]) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return torch.equal(before, after)
    is_its_number = type(before) is int and (before, after) == numbers
    return type(before) is type(after) and (before == after or is_its_number)
