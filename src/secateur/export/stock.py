"""Whether the family's own configuration and class can hold a pruned shape, and the configuration that does."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from secateur import axes
from secateur.axes import Sizes
from secateur.errors import UserError
from secateur.families.binding import Binding, bias_of, bind
from secateur.families.depth import check_renumbered, shortened
from secateur.families.family import Stock
from secateur.families.unequal import self_contained
from secateur.settings import Format


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a pruned model is written. `config` describes it: with the pruned sizes if `stock`, else with the original ones; in
    either case without the layers that left."""

    stock: bool
    config: Any
    reasons: tuple[str, ...]
    """Why the stock class cannot hold it; empty if it can."""
    notes: tuple[str, ...] = ()
    self_contained: bool = True
    """Whether nothing but transformers, and the modelling file that is written where the shape is not stock, is needed to load it: the
    model's class is one of transformers, and not one that the model brings."""

    @property
    def by_secateur(self) -> bool:
        """Only `secateur.load` loads it."""
        return not self.stock and not self.self_contained

    @property
    def needs_code(self) -> bool:
        """It loads with `trust_remote_code=True`."""
        return not self.stock or not self.self_contained

    def loading(self, out: str) -> str:
        """The line of Python that loads it."""
        loader = "secateur.load" if self.by_secateur else "AutoModelForCausalLM.from_pretrained"
        return f"{loader}({out!r}{', trust_remote_code=True' if self.needs_code else ''})"


def shape_of(
    binding: Binding,
    layers: Sequence[Sizes],
    new_biases: Collection[str] = (),
    dropped: Collection[int] = (),
    *,
    form: Format = "auto",
) -> Shape:
    """Decide from the sizes, after pruning, of the layers that stay.

    `new_biases`: readers (weight names) that get a bias they did not have. `dropped`: layers that leave whole; a `UserError` where
    the others cannot move up. `form`: "unequal" is that form although the stock one could hold it; a `UserError` where it cannot be.
    """
    stock = binding.family.stock[binding.model_type]
    flagged = with_biases(binding, new_biases)
    if dropped:
        stay = [i for i in range(binding.num_layers) if i not in dropped]
        assert len(stay) == len(layers), f"sizes of {len(layers)} layers, and {len(stay)} stay"
        check_renumbered(binding, stay)
        flagged = shortened(flagged, binding.family, stay)
    reasons = _reasons(binding, stock, layers, new_biases)
    if form == "unequal" and not reasons:
        reasons = ("--format unequal was given",)
        if not self_contained(binding):
            raise UserError(
                f"{reasons[0]}, and this {binding.model_type!r} model brings its own class, which that form cannot be made of. Leave "
                "out --format, or give --format stock."
            )
    if reasons:
        return _unequal(binding, flagged, reasons, new_biases)
    sizes = layers[0]
    config, notes = copy.deepcopy(flagged), ()
    if stock.heads_divide_hidden and binding.sizes["hidden"] % heads(sizes) and _heads_pruned(binding, layers):
        assert stock.relabel is not None
        if new_biases or _has_bias(binding):
            why = (
                f"{binding.model_type} refuses {heads(sizes)} heads on hidden size {binding.sizes['hidden']}, and "
                f"{stock.relabel[0]}, which accepts them, has no biases"
            )
            return _unequal(binding, flagged, (why,), new_biases)
        config = _relabelled(config, stock)
        notes = (
            f"written as {stock.relabel[1]} (equal logits), because {binding.model_type} refuses {heads(sizes)} heads on "
            f"hidden size {binding.sizes['hidden']}",
        )
    for field, product in stock.fields.items():
        if _mentions_pruned(product, binding, layers):
            setattr(config, field, axes.term_size(tuple(product.split()), sizes))
    if not self_contained(binding):
        notes = (*notes, "it runs the code that the model brings, as the original does")
    return Shape(stock=True, config=config, reasons=(), notes=notes, self_contained=self_contained(binding))


def _unequal(binding: Binding, config: Any, reasons: tuple[str, ...], new_biases: Collection[str]) -> Shape:
    contained = self_contained(binding)
    slotless = _slotless(binding, new_biases)
    if slotless and not contained:
        raise UserError(
            f"this {binding.model_type!r} model has no bias slot on {slotless}, which bias compensation needs, and brings its own "
            f"class, which none can be added to. Use --compensate least-squares (better, and needs none) or --compensate none."
        )
    return Shape(stock=False, config=config, reasons=reasons, self_contained=contained)


def _slotless(binding: Binding, new_biases: Collection[str]) -> str:
    flags = binding.family.stock[binding.model_type].bias_flags
    return " and ".join(sorted(name.removesuffix(".weight") for name in new_biases if name not in flags))


def accepted_heads(binding: Binding, new_biases: Collection[str] = ()) -> frozenset[int] | None:
    """Total head counts that a stock checkpoint can have; None for any; empty where heads cannot leave at all."""
    stock = binding.family.stock[binding.model_type]
    if not any("kv" in product.split() for product in stock.fields.values()) or _fixed(binding, stock):
        return frozenset()
    if not stock.heads_divide_hidden or (stock.relabel and not new_biases and not _has_bias(binding)):
        return None
    hidden = binding.sizes["hidden"]
    return frozenset(n for n in range(1, heads(binding.sizes) + 1) if hidden % n == 0)


def accepts_ffn(binding: Binding) -> bool:
    stock = binding.family.stock[binding.model_type]
    return any("ffn" in product.split() for product in stock.fields.values())


def with_biases(binding: Binding, readers: Collection[str]) -> Any:
    """The configuration that gives a bias to those of these readers that the family has a flag for."""
    stock = binding.family.stock[binding.model_type]
    config = copy.deepcopy(binding.config)
    for reader in readers:
        if reader in stock.bias_flags:
            setattr(config, stock.bias_flags[reader], True)
    return config


def bound_with_biases(binding: Binding, readers: Collection[str], dtype: torch.dtype = torch.float32) -> Binding:
    """The same model with a bias on these readers, by the family's flag or beside its class."""
    if not readers:
        return binding
    return bind(with_biases(binding, readers), dtype=dtype, biases=[bias_of(reader) for reader in readers])


def heads(sizes: Sizes) -> int:
    return sizes["kv"] * sizes.get("group", 1)


def _reasons(binding: Binding, stock: Stock, layers: Sequence[Sizes], new_biases: Collection[str]) -> tuple[str, ...]:
    slotless = _slotless(binding, new_biases)
    out = [f"a {binding.model_type!r} model has no bias slot on {slotless}"] if slotless else []
    named = {axis for product in stock.fields.values() for axis in product.split()}
    pruned = [a for a in axes.PRUNABLE if a in binding.sizes and any(s[a] != binding.sizes[a] for s in layers)]
    for axis in pruned:
        if axis not in named:
            out.append(f"a {binding.model_type} configuration has no field for pruned {WORDS[axis]}")
    if any(layers[0][a] != s[a] for s in layers for a in pruned):
        out.append("its layers have unequal sizes, and one configuration describes all layers")
    elif _heads_pruned(binding, layers):
        out.extend(_fixed(binding, stock))
        if stock.heads_divide_hidden and stock.relabel is None and binding.sizes["hidden"] % heads(layers[0]):
            out.append(f"{binding.model_type} refuses {heads(layers[0])} heads on hidden size {binding.sizes['hidden']}")
    return tuple(out)


WORDS: Mapping[str, str] = {"ffn": "MLP channels", "kv": "attention heads", "group": "query heads"}


def _fixed(binding: Binding, stock: Stock) -> list[str]:
    return [why for why, applies in stock.heads_fixed.items() if applies(binding.config)]


def _heads_pruned(binding: Binding, layers: Sequence[Sizes]) -> bool:
    return any(s.get(a) != binding.sizes.get(a) for s in layers for a in ("kv", "group"))


def _mentions_pruned(product: str, binding: Binding, layers: Sequence[Sizes]) -> bool:
    """Also `head_dim` must be spelt out once head counts change: it is derived from them otherwise."""
    names = set(product.split())
    changed = {a for a in axes.PRUNABLE if any(s.get(a) != binding.sizes.get(a) for s in layers)}
    return bool(names & changed) or ("head_dim" in names and bool(changed & {"kv", "group"}))


def _has_bias(binding: Binding) -> bool:
    return any(name.endswith(".bias") for name in binding.layer)


def _relabelled(config: Any, stock: Stock) -> Any:
    """The same model under another model type's configuration class."""
    from transformers import AutoConfig

    assert stock.relabel is not None
    model_type, architecture = stock.relabel
    known = set(AutoConfig.for_model(model_type).to_dict()) - {"model_type", "architectures", "transformers_version"}
    given = {k: v for k, v in config.to_dict().items() if k in known}
    new = AutoConfig.for_model(model_type, **(given | dict(stock.relabel_fields)))
    new.architectures = [architecture]
    return new
