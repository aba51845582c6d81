"""A family's table bound to one configuration: which weights this model really has, and how large each axis is."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from secateur import axes
from secateur.axes import Sizes, Spec
from secateur.errors import UserError
from secateur.families import family_for
from secateur.families.family import Config, Family
from secateur.families.modeling_secateur import UnequalConfig


@dataclass(frozen=True, kw_only=True)
class Binding:
    """A family's table, checked to describe a model's every weight.

    `model` is the Hugging Face model on the meta device: it has the shapes and the real buffers, never the weights.
    """

    config: Config
    family: Family
    model: nn.Module
    sizes: Sizes
    num_layers: int
    outer: Mapping[str, Spec]
    """Weights outside the layers, full names; a tied head is not among them."""
    layer: Mapping[str, Spec]
    """Weights of one layer, names relative to it. All layers have the same."""
    tied: str | None
    """The name of the head's weight where it is the embedding's own tensor."""
    added: tuple[str, ...] = ()
    """Biases of a layer that its class has no slot for, and that were added to it."""

    @property
    def model_type(self) -> str:
        return self.config.model_type

    @property
    def embedding(self) -> str:
        """The outer weight whose rows the token ids pick."""
        return next(n for n, s in self.outer.items() if 0 in s.inputs and s.dims[0] == (("vocab",),))

    def is_head(self, name: str) -> bool:
        """An outer weight whose output is over the vocabulary: the head and its bias."""
        spec = self.outer[name]
        return 0 not in spec.inputs and spec.dims[0] == (("vocab",),)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Prunable axes with more than one unit."""
        return tuple(axis for axis in axes.PRUNABLE if self.sizes.get(axis, 1) > 1)

    def layer_name(self, layer: int, name: str) -> str:
        return f"{self.family.layers}.{layer}.{name}"

    def layer_module(self, layer: int) -> nn.Module:
        return self.model.get_submodule(f"{self.family.layers}.{layer}")

    def names(self) -> Iterator[str]:
        """Every weight of the model, in the order of the forward pass's modules."""
        inner = {self.layer_name(i, n) for i in range(self.num_layers) for n in self.layer}
        yield from (n for n, _ in self.model.named_parameters() if n in inner or n in self.outer)

    def spec(self, name: str) -> Spec:
        at = self.locate(name)
        return self.outer[name] if at is None else self.layer[at[1]]

    def locate(self, name: str) -> tuple[int, str] | None:
        """(layer, relative name) of a weight inside a layer; None for one outside."""
        head = self.family.layers + "."
        if not name.startswith(head):
            return None
        number, _, rest = name[len(head) :].partition(".")
        return int(number), rest

    def readers(self, axis: str) -> dict[str, Spec]:
        """The layer's matrices with `axis` on the input side."""
        return {n: s for n, s in self.layer.items() if len(s.dims) == 2 and s.reads(axis)}


def bind(
    config: Config, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False, biases: Collection[str] = ()
) -> Binding:
    """Build the model without weights and check the family's table against its every parameter.

    `biases`: names of biases that every layer has, added to it where its class has no slot for one. A configuration of unequal
    layers is bound as the stock one that it was made from.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = config.stock() if isinstance(config, UnequalConfig) else config
    family = family_for(config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()  # moving the parameters to the meta device one by one has parted them
    model.eval().requires_grad_(False)
    sizes = {axis: int(size(config)) for axis, size in family.sizes.items()}
    texts = dict(family.layer) | {n: family.layer.get(n) or output(family.layer[weight_of(n)]) for n in biases}
    stack: Any = model.get_submodule(family.layers)
    added = _add_biases(stack, {n: axes.shape(axes.parse(texts[n]), sizes) for n in biases}, dtype)
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    prefix, num_layers = family.layers + ".", len(stack)
    outer = {n: axes.parse(family.outer[n]) for n in found if n in family.outer}
    layer = {n: axes.parse(s) for n, s in texts.items() if f"{prefix}0.{n}" in found}
    described = {**outer, **{f"{prefix}{i}.{n}": s for i in range(num_layers) for n, s in layer.items()}}
    for name, shape in found.items():
        expected = axes.shape(described[name], sizes) if name in described else None
        if shape != expected:
            raise UserError(
                f"the {config.model_type!r} model has a weight {name!r} of shape {list(shape)}, which the family's table "
                f"{'does not name' if expected is None else f'gives the shape {list(expected)}'}. This variant of the "
                f"architecture is not supported yet: add the weight to src/secateur/families (see docs/families.md)."
            )
    head = next((n for n, p in model.named_parameters(remove_duplicate=False) if n not in found), None)
    return Binding(
        config=config, family=family, model=model, sizes=sizes, num_layers=num_layers, outer=outer, layer=layer, tied=head,
        added=added,
    )  # fmt: skip


def _add_biases(stack: Any, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[str, ...]:
    """Those of the named biases that the layers' class has no slot for, after they have got them, on the meta device."""
    added = tuple(n for n in shapes if len(stack) and stack[0].get_submodule(n.removesuffix(".bias")).bias is None)
    for layer, name in product(stack, added):
        empty = torch.empty(shapes[name], dtype=dtype, device="meta")
        layer.get_submodule(name.removesuffix(".bias")).bias = nn.Parameter(empty, requires_grad=False)
    return added


def bias_of(weight: str) -> str:
    return weight.removesuffix(".weight") + ".bias"


def weight_of(bias: str) -> str:
    return bias.removesuffix(".bias") + ".weight"


def output(text: str) -> str:
    """The axes of a matrix's bias: `"hidden"` of `"hidden <- ffn"`."""
    spec = axes.parse(text)
    return f"({spelled(next(dim for d, dim in enumerate(spec.dims) if d not in spec.inputs))})"


def spelled(dim: axes.Dim) -> str:
    """One dimension as text: `"kv group head_dim + 2 kv head_dim"`."""
    return " + ".join(" ".join(term) for term in dim)
