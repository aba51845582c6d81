"""A model family is a table of named axes, nothing else: every weight's dimensions, and what a configuration can hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Config = Any  # transformers' PreTrainedConfig; its attributes are the family's own
# (configuration, layers that stay, ascending) -> a field's value for them alone.
Chosen = Callable[[Config, Sequence[int]], Any]


def each(name: str) -> Chosen:
    """Of a field with one entry for each layer: those of the layers that stay."""
    return lambda config, stay: None if getattr(config, name) is None else [getattr(config, name)[i] for i in stay]


def before(name: str) -> Chosen:
    """Of a field that is a layer's number, up to which layers differ from the rest: how many of those stay; more where it is past
    the last layer."""

    def count(config: Config, stay: Sequence[int]) -> Any:
        border = getattr(config, name)
        return None if border is None else sum(i < border for i in stay) + max(border - config.num_hidden_layers, 0)

    return count


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Which pruned shapes a model type's own configuration and class can hold, when all layers have the same."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Configuration field -> product of axes. An axis that no field names cannot be pruned in a stock checkpoint."""
    heads_divide_hidden: bool = False
    """The class refuses `hidden % (kv * group) != 0`."""
    heads_fixed: Mapping[str, Callable[[Config], bool]] = field(default_factory=dict)
    """Why a member of the type cannot change its head counts after all -> whether a configuration is such a member."""
    relabel: tuple[str, str] | None = None
    """(model type, architecture) with equal logits that accepts head counts this one refuses; needs no bias anywhere."""
    relabel_fields: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields to set with `relabel`; `fields` stay as they are."""
    bias_flags: Mapping[str, str] = field(default_factory=dict)
    """Reader weight -> configuration flag that gives it a bias, where the checkpoint has none.

    A flag may give biases to other weights of the layer as well: those are written as zeros.
    """
    biased: tuple[str, ...] = ()
    """Reader weights that every member of the type has a bias for. A reader in neither has no slot for one."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One half of a layer, attention or MLP, by the paths of its modules inside the layer."""

    entry: str
    """The module that is called with the normalised residual stream as its first argument."""
    norm: tuple[str, ...]
    """The norm in front of it, whose input is the residual stream itself: the first of these that a member of the family has."""
    through: tuple[str, ...] = ()
    """Where the layer itself calls the modules one by one: those from the entry to the one before the reader."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture family. Weight names inside `layer` are relative to one layer of the module list `layers`.

    A table may name weights that only some members of the family have; every weight a model has must be named. Buffers are
    not weights.
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
    attention: Block
    mlp: Block
    attrs: Mapping[str, str] = field(default_factory=dict)
    """Module attribute of a layer -> product of axes; set when a layer has other sizes than its configuration says.

    These are what the layer's forward reads besides its weights. A path through `config` means a copy of the configuration
    that only this layer's module has.
    """
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Tensors the layer is called with that have a prunable axis (BLOOM's ALiBi): keyword -> axes; `batch` is the call's."""
    returns_tuple: bool = False
    """The layer returns (hidden, ...) and not hidden."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Old checkpoint spelling -> parameter name, as `from_pretrained` maps it."""
    depth: Mapping[str, Chosen] = field(default_factory=lambda: {"layer_types": each("layer_types")})
    """Configuration field that says something of each layer -> its value when only some layers stay."""
    stock: Mapping[str, Stock]
    """What the family's own configuration can hold, by model type."""


def _head_dim(config: Config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# Attention with `kv` key-value heads of `group` query heads each; `head_dim` may be a field of its own.
GROUPED: Mapping[str, Callable[[Config], int]] = {
    "vocab": lambda c: c.vocab_size,
    "hidden": lambda c: c.hidden_size,
    "ffn": lambda c: c.intermediate_size,
    "kv": lambda c: c.num_key_value_heads,
    "group": lambda c: c.num_attention_heads // c.num_key_value_heads,
    "head_dim": _head_dim,
}
# Attention where every head has its own keys and values, and the class derives the head's size.
MULTI_HEAD: Mapping[str, Callable[[Config], int]] = {
    "vocab": lambda c: c.vocab_size,
    "hidden": lambda c: c.hidden_size,
    "kv": lambda c: c.num_attention_heads,
    "head_dim": lambda c: c.hidden_size // c.num_attention_heads,
}
