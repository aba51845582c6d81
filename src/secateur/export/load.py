"""Load any model that secateur wrote, in memory, as a Hugging Face model."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import axes
from secateur.axes import Kept
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.families.resize import resize_layer, slice_inputs
from secateur.families.unequal import is_unequal, own_model
from secateur.plan import RECORD, Plan, read_record
from secateur.streaming.checkpoint import Checkpoint, locate, read_body


def load(
    model: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> Any:
    """A model directory (or hub id) as a `PreTrainedModel` in evaluation mode; unequal layers included.

    A directory that `AutoModelForCausalLM.from_pretrained` loads is given to it; unequal layers are loaded by this package's own
    copy of the file that lies beside them. Raises `UserError` if it is neither.
    """
    from transformers import AutoModelForCausalLM

    directory = locate(str(model))
    record, body = read_record(directory), read_body(directory)
    old = record is not None and not record["stock"] and not is_unequal(body)
    if old or is_unequal(body):
        source = Checkpoint.open(directory, dtype=dtype, trust_remote_code=trust_remote_code)  # and check it
        if old:
            return _unequal(source).to(device).eval()
    loader, options = (
        (own_model(body), {}) if is_unequal(body) else (AutoModelForCausalLM, {"trust_remote_code": trust_remote_code})
    )
    try:
        loaded: Any = loader.from_pretrained(directory, dtype=dtype or "auto", **options)
    except Exception as error:  # of every library that has a part in it
        why = " ".join(str(error).split())[:500].rstrip(".!")
        raise UserError(
            f"{directory} cannot be loaded: {type(error).__name__}: {why}. If secateur wrote it, copy it again, whole, with its "
            f"{RECORD}."
        ) from error
    return loaded.to(device).eval()


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers in the block: for loads that are a small part of something with a progress of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    shown, hub_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
            if not hub_shown:
                disable_progress_bars()


def load_pruned(
    model: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> tuple[Any, Plan]:
    """A model that secateur pruned, and the plan it was pruned by. Raises `UserError` for one without a plan."""
    plan = read_plan(model)
    return load(fspath(model), dtype=dtype, device=device, trust_remote_code=trust_remote_code), plan


def read_plan(model: str | PathLike[str]) -> Plan:
    """The plan that a model directory (or hub id) was pruned by. Raises `UserError` for one without."""
    directory = locate(fspath(model))
    record = read_record(directory)
    if record is None:
        raise UserError(
            f"{directory} has no {RECORD}, so it is not known which channels it lost. Give a directory that `secateur prune` wrote."
        )
    return record["plan"]


def _unequal(source: Checkpoint) -> nn.Module:
    """Of a directory without a modelling file of its own, as secateur once wrote them: the original `config.json` and a plan."""
    binding = source.binding
    model: Any = binding.model
    for name in binding.names():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(source.read(name).to(model.dtype), requires_grad=True))
    for number, kept in enumerate(source.layers):
        layer = binding.layer_module(number)
        resize_layer(layer, binding.family, axes.kept_sizes(binding.sizes, kept))
        if binding.family.inputs:
            layer.register_forward_pre_hook(_slicer(binding, kept), with_kwargs=True)
    model.tie_weights()
    generation = source.directory / "generation_config.json"
    if generation.is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(source.directory)
    return model.requires_grad_(True)


def _slicer(binding: Binding, kept: Kept) -> Any:
    def slice_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, slice_inputs(binding.family, kwargs, binding.sizes, kept)

    return slice_call
