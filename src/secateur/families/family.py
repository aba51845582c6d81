"""A model family is a table of named axes, nothing else: every weight's dimensions, and what a configuration can hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Any  # transformers' PretrainedConfig; its attributes are the family's own


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture family. Weight names inside `layer` are relative to one layer of the module list `layers`.

    A table may name weights that only some members of the family have; every weight a model has must be named.
    """

    model_types: tuple[str, ...]
    layers: str
    """Path of the module list of layers inside the causal language model."""
    sizes: Mapping[str, Callable[[Config], int]]
    """Axis name -> its size, from the configuration."""
    outer: Mapping[str, str]
    """Weights outside the layers: name -> axes."""
    layer: Mapping[str, str]
    """Weights of one layer: name -> axes."""
    attrs: Mapping[str, str] = field(default_factory=dict)
    """Module attribute of a layer -> product of axes; set when a layer has other sizes than its configuration says.

    A path through `config` means the layer's own copy of the configuration.
    """
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Tensors the layer is called with that have a prunable axis (BLOOM's ALiBi): keyword -> axes; `batch` is the call's."""
    returns_tuple: bool = False
    """The layer returns (hidden, ...) and not hidden."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Old checkpoint spelling -> parameter name, as `from_pretrained` maps it."""
    stock: Mapping[str, "Stock"]
    """What the family's own configuration can hold, by model type."""


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Which pruned shapes a model type's own configuration and class can hold, when all layers have the same."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Configuration field -> product of axes. An axis that no field names cannot be pruned in a stock checkpoint."""
    heads_divide_hidden: bool = False
    """The class refuses `hidden % (kv * group) != 0`."""
    relabel: tuple[str, str] | None = None
    """(model type, architecture) with equal logits that accepts head counts this one refuses; needs no bias anywhere."""
    relabel_fields: Mapping[str, Any] = field(default_factory=dict)
    bias_flags: Mapping[str, str] = field(default_factory=dict)
    """Reader weight -> configuration flag that gives it a bias, where the checkpoint has none."""
    """(A flag may give biases to other weights of the layer as well: those are written as zeros.)"""
