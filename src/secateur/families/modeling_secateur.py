"""A causal language model whose layers have sizes of their own: the stock class of its family, each layer re-sized.

Written by Secateur beside the weights. `SecateurLlamaForCausalLM` is `transformers.LlamaForCausalLM` whose layers have the widths
and head counts that `config.secateur` lists; the same goes for every other class of transformers that has a stack of layers.
Nothing of the computation is here: attention, masks, caches and `generate` are those of the stock class.

`config.secateur` holds
    layers      path of the module list of layers inside the base model
    sizes       for each layer, the size of every axis
    weights     weight of a layer -> its dimensions, each a sum of products of axes; one that the stock class lacks is added
    attributes  what a layer's forward reads besides weights -> product of axes; `config` in the path is that layer's alone
    inputs      tensor that a layer is called with -> the dimension, the units along it, and for each layer those that stay
    fields      fields of the stock configuration that the file shows a message in, so that only this class can read it
"""

from functools import partial
from math import prod
from typing import Any

import transformers
from torch import nn

PREFIX, TYPE = "Secateur", "secateur_"
NOTICE = (
    "the layers of this model have unequal sizes, and the stock class would not load it rightly. Load it with "
    "AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True), or without that flag after secateur.register(), "
    "or with secateur.load(...)"
)
WIDTHS = (("out_features", "in_features"), ("nx", "nf"))  # of nn.Linear and Conv1D, in the order of the weight's dimensions

Stock: Any = object  # a class of transformers that comes behind


def size(dim, sizes):
    """Of one dimension: `"kv group head_dim + 2 kv head_dim"`."""
    return sum(prod(sizes[n] if n in sizes else int(n) for n in term.split()) for term in dim.split("+"))


class UnequalConfig(Stock):
    """Mixed into a stock configuration class."""

    _auto_class = "AutoConfig"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        return super().from_dict({**config_dict, **config_dict["secateur"]["fields"]}, **kwargs)

    def to_diff_dict(self):
        return {**super().to_diff_dict(), **dict.fromkeys(self.secateur["fields"], NOTICE)}

    def stock(self):
        """The stock configuration of the model that this one was made from."""
        own = ("secateur", "auto_map", "model_type", "architectures", "transformers_version")
        found = super().to_diff_dict()
        return type(self).__mro__[2].from_dict({name: value for name, value in found.items() if name not in own})


class UnequalModel(Stock):
    """Mixed into a stock model class."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        resize(self)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        if kwargs.get("ignore_mismatched_sizes"):
            raise ValueError("ignore_mismatched_sizes=True would load random layers where sizes differ. Leave it out.")
        return super().from_pretrained(*args, **kwargs)


def resize(model):
    """Give each layer the sizes of the configuration. Weights keep their first rows and columns, until others are loaded."""
    facts = model.config.secateur
    layers = model.base_model.get_submodule(facts["layers"])
    if len(layers) != len(facts["sizes"]):
        raise ValueError(f"config.secateur describes {len(facts['sizes'])} layers, and the model has {len(layers)}")
    for number, (layer, sizes) in enumerate(zip(layers, facts["sizes"], strict=True)):
        for name, dims in facts["weights"].items():
            path, _, kind = name.rpartition(".")
            set_weight(layer.get_submodule(path), kind, [size(dim, sizes) for dim in dims])
        for path, dims in facts["attributes"].items():
            set_attribute(layer, path, size(dims, sizes))
        if facts["inputs"]:
            layer.register_forward_pre_hook(partial(select, facts["inputs"], number), with_kwargs=True)


def set_weight(module, kind, shape):
    old = getattr(module, kind)
    if old is None:
        old = module.weight.new_zeros(shape)
    new = old.detach()[tuple(slice(n) for n in shape)].clone()
    if list(new.shape) != shape:
        raise ValueError(f"config.secateur wants the shape {shape} of a weight that has {list(old.shape)} in the stock class")
    setattr(module, kind, nn.Parameter(new))
    for names in WIDTHS:
        if len(shape) == 2 and all(hasattr(module, n) for n in names):
            for name, width in zip(names, shape, strict=True):
                setattr(module, name, width)


def set_attribute(owner, path, value):
    first, _, rest = path.partition(".")
    if not rest:
        setattr(owner, first, value)
    elif first == "config":
        owner.config = LayerConfig(owner.config, {rest: value})
    else:
        set_attribute(getattr(owner, first), rest, value)


class LayerConfig:
    """The model's configuration as one layer sees it: some attributes are the layer's own, all others the model's, as they are."""

    def __init__(self, shared, own):
        self.shared_config = shared
        self.__dict__.update(own)

    def __getattr__(self, name):
        if name.startswith("__") or name == "shared_config":  # asked for by `copy` and `pickle` before there is one
            raise AttributeError(name)
        return getattr(self.shared_config, name)


def select(inputs, number, layer, args, kwargs):
    """What a layer is called with, of its own units alone: a dimension is any number of times all units."""
    for name, (dim, units, kept) in inputs.items():
        x = kwargs.get(name)
        if x is not None:
            index = x.new_tensor(kept[number], dtype=int)
            kwargs[name] = x.unflatten(dim, (-1, units)).index_select(dim + 1, index).flatten(dim, dim + 1)
    return args, kwargs


def __getattr__(name):
    """`Secateur` and the name of a class of transformers: that class with unequal layers, made when it is first asked for."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(stock, transformers.PreTrainedConfig):
        made = type(name, (UnequalConfig, stock), {"__module__": __name__, "model_type": TYPE + stock.model_type})
    else:
        config = globals().get(named := PREFIX + stock.config_class.__name__) or __getattr__(named)
        auto = "AutoModelForCausalLM" if hasattr(stock, "generate") else "AutoModel"
        made = type(name, (UnequalModel, stock), {"__module__": __name__, "config_class": config, "_auto_class": auto})
    return globals().setdefault(name, made)
