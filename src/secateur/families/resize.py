"""A layer module at other sizes than its configuration's: what its forward reads besides weights.

The weights themselves are the caller's: it replaces them, or passes them to `functional_call`.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur import axes
from secateur.axes import Kept, Sizes, Spec
from secateur.families.family import Family

# Width attributes in the order of the weight's dimensions: nn.Linear stores out <- in, Conv1D in -> out.
WIDTHS = (("out_features", "in_features"), ("nx", "nf"))


def resize_layer(layer: nn.Module, family: Family, sizes: Sizes) -> None:
    """Make `layer` compute with the axis sizes `sizes` (all of the layer's axes, after pruning). Changes it in place.

    Sets the attributes of the family's table, and the widths of its linear modules. A path through `config` gives that module
    its own shallow copy of the configuration first, which from then on no longer follows changes of the model's.
    """
    for path, product in family.attrs.items():
        *modules, attribute = path.split(".")
        owner: Any = layer
        for name in modules:
            if name == "config":
                setattr(owner, name, copy.copy(owner.config))
            owner = getattr(owner, name)
        setattr(owner, attribute, axes.term_size(tuple(product.split()), sizes))
    for name, text in family.layer.items():
        _set_widths(layer, name, axes.shape(axes.parse(text), sizes))


def _set_widths(layer: nn.Module, weight: str, shape: tuple[int, ...]) -> None:
    try:
        module = layer.get_submodule(weight.rpartition(".")[0])
    except AttributeError:  # a weight that only other members of the family have
        return
    for names in WIDTHS:
        if len(shape) == len(names) and all(hasattr(module, n) for n in names):
            for name, size in zip(names, shape, strict=True):
                setattr(module, name, size)


def slice_inputs(family: Family, kwargs: Mapping[str, Any], sizes: Sizes, kept: Kept) -> dict[str, Any]:
    """The keyword arguments of a layer's call, with the kept units alone of every tensor that has a prunable axis.

    `sizes` are the axes of the tensors as they come, before pruning. Everything else is passed on as it is.
    """
    sliced = dict(kwargs)
    for name, text in family.inputs.items():
        x = sliced.get(name)
        if isinstance(x, Tensor):
            spec = axes.parse(text)
            sliced[name] = axes.select(x, spec, {**sizes, "batch": _batch(x, spec, sizes)}, kept)
    return sliced


def _batch(x: Tensor, spec: Spec, sizes: Sizes) -> int:
    for size, dim in zip(x.shape, spec.dims, strict=True):
        for term in dim:
            if "batch" in term:
                return size // axes.term_size(tuple(name for name in term if name != "batch"), sizes)
    return 1
