"""Load any model that secateur wrote, in memory, as a Hugging Face model."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import axes
from secateur.axes import Kept
from secateur.errors import UserError
from secateur.families.binding import Binding, bind
from secateur.families.resize import resize_layer, slice_inputs
from secateur.plan import Plan, read_record
from secateur.streaming.checkpoint import locate, read_config, shards, spellings


def load(model: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Any:
    """A model directory (or hub id) as a `PreTrainedModel` in evaluation mode; unequal layers included.

    A directory that `AutoModelForCausalLM.from_pretrained` loads is given to it. Raises `UserError` if it is neither.
    """
    from transformers import AutoModelForCausalLM

    directory = locate(str(model))
    record = read_record(directory)
    if record is None or record["stock"]:
        loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto")
        return loaded.to(device).eval()
    return _unequal(directory, record["plan"], dtype).to(device).eval()


def _unequal(directory: Path, plan: Plan, dtype: torch.dtype | None) -> nn.Module:
    config = read_config(directory)
    files = shards(directory)
    found = {key: file for file in files for key in file.entries}
    stored = next(iter(f.entries[k].dtype for k, f in found.items()))
    binding = bind(config, dtype=dtype or stored)
    model: Any = binding.model
    names = spellings(binding, found)
    for name in binding.names():
        if name not in names:
            raise UserError(f"the weight {name!r} is in no file of {directory}. The checkpoint is incomplete: copy it again.")
        key = names[name]
        value = found[key].read(key).to(dtype or stored)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(value, requires_grad=True))
    for number, kept in enumerate(plan.layers):
        layer = binding.layer_module(number)
        resize_layer(layer, binding.family, axes.kept_sizes(binding.sizes, kept))
        if binding.family.inputs:
            layer.register_forward_pre_hook(_slicer(binding, kept), with_kwargs=True)
    model.tie_weights()
    generation = directory / "generation_config.json"
    if generation.is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model.requires_grad_(True)


def _slicer(binding: Binding, kept: Kept) -> Any:
    def slice_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, slice_inputs(binding.family, kwargs, binding.sizes, kept)

    return slice_call
