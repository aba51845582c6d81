"""Layers of unequal sizes as a configuration says them: written from a family's table, and read again.

`modeling_secateur` is the class that such a configuration is for, here and beside the weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import axes
from secateur.axes import Kept, Sizes
from secateur.errors import UserError
from secateur.families import family_for, model_types, modeling_secateur
from secateur.families.binding import Binding, spelled
from secateur.families.family import Config
from secateur.families.modeling_secateur import PREFIX, TYPE

CODE = Path(modeling_secateur.__file__).stem


@dataclass(frozen=True, kw_only=True)
class Unequal:
    """What `config.secateur` says, as the rest of the package has it."""

    sizes: tuple[Mapping[str, int], ...]
    biases: tuple[str, ...]
    kept: Mapping[str, Sequence[Sequence[int]]]
    """Axis -> the kept units of each layer; only of an axis that tensors outside the layers have."""

    @classmethod
    def of(cls, config: Config) -> "Unequal":
        facts, family = config.secateur, family_for(config.stock())
        kept = {_sliced(text)[1]: facts["inputs"][name][2] for name, text in family.inputs.items()}
        biases = tuple(name for name in facts["weights"] if name.endswith(".bias"))
        return cls(sizes=tuple(facts["sizes"]), biases=biases, kept=kept)

    def describes(self, layers: Sequence[Kept], whole: Sizes) -> bool:
        """Whether layers of these kept units have these sizes."""
        given = [axes.kept_sizes(whole, kept) for kept in layers]
        return len(given) == len(self.sizes) and all(
            g[a] == n for g, own in zip(given, self.sizes, strict=True) for a, n in own.items()
        )

    def layers(self, whole: Sizes) -> tuple[Kept, ...]:
        """Kept units of each layer; which of the original's they are is only known for those of `kept`."""
        found = []
        for number, sizes in enumerate(self.sizes):
            fewer = [a for a in axes.PRUNABLE if a in whole and sizes[a] != whole[a]]
            layer: dict[str, Any] = {a: tuple(range(sizes[a])) for a in fewer if a not in axes.PARENT}
            layer |= {a: (tuple(range(sizes[a])),) * sizes[axes.PARENT[a]] for a in fewer if a in axes.PARENT}
            found.append(layer | {a: tuple(self.kept[a][number]) for a in fewer if a in self.kept})
        return tuple(found)


def unequal_config(target: Binding, config: Config, layers: Sequence[Kept]) -> Config:
    """The configuration of the self-contained form: `config`'s, and the sizes of each layer that stays.

    `target` has the biases that the result has; `layers` are the kept units of those that stay, in order.
    """
    assert self_contained(target), f"{type(target.model)} is not a class of transformers"
    family = target.family
    sizes = [axes.kept_sizes(target.sizes, kept) for kept in layers]
    weights = {
        name: [spelled(dim) for dim in spec.dims]
        for name, spec in target.layer.items()
        if name in target.added or any(spec.mentions(axis) for axis in axes.PRUNABLE)
    }
    named = {
        word for dims in [*weights.values(), family.attrs.values()] for dim in dims for word in dim.replace("+", " ").split()
    }
    inputs = {}
    for name, text in family.inputs.items():
        dim, axis = _sliced(text)
        inputs[name] = [dim, target.sizes[axis], [list(kept.get(axis, range(target.sizes[axis]))) for kept in layers]]
    field = config.attribute_map.get("num_attention_heads", "num_attention_heads")
    base: Any = target.model.base_model
    classes = {"AutoConfig": config, "AutoModel": base, "AutoModelForCausalLM": target.model}
    auto = {name: f"{CODE}.{PREFIX}{type(one).__name__}" for name, one in classes.items()}
    facts = {
        "layers": family.layers.removeprefix(base.base_model_prefix + "."), "weights": weights, "attributes": dict(family.attrs),
        "inputs": inputs, "fields": {field: getattr(config, field)},
        "sizes": [{axis: size for axis, size in one.items() if axis in named} for one in sizes],
    }  # fmt: skip
    body = {name: value for name, value in config.to_diff_dict().items() if name not in ("model_type", "transformers_version")}
    body |= {"secateur": facts, "auto_map": auto, "architectures": [PREFIX + type(target.model).__name__]}
    return getattr(modeling_secateur, PREFIX + type(config).__name__).from_dict(body)


def self_contained(binding: Binding) -> bool:
    """Whether the model's classes are transformers' own, by which the modelling file names them."""
    import transformers

    model: Any = binding.model
    return all(getattr(transformers, type(x).__name__, None) is type(x) for x in (binding.config, model, model.base_model))


def is_unequal(body: Any) -> bool:
    """Whether a configuration file is of this form."""
    return isinstance(body, Mapping) and str(body.get("model_type")).startswith(TYPE)


def own_config(directory: Path) -> Config | None:
    """The configuration in a directory of this form, by this package's class and not by the file beside it; None of any other."""
    path = directory / "config.json"
    body = json.loads(path.read_text()) if path.is_file() else {}
    return _own(body["auto_map"]["AutoConfig"]).from_pretrained(directory) if is_unequal(body) else None


def own_model(body: Mapping[str, Any]) -> Any:
    """The causal language model's class, this package's."""
    return _own(body["auto_map"]["AutoModelForCausalLM"])


def _own(reference: str) -> Any:
    return getattr(modeling_secateur, reference.rpartition(".")[2])


def register() -> None:
    """Let transformers load models of unequal layers with no flag: `AutoConfig`, `AutoModel` and `AutoModelForCausalLM`.

    What is then run is this package's own code, and never a file beside the weights.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    for model_type in model_types():
        if model_type not in CONFIG_MAPPING:
            continue
        stock = CONFIG_MAPPING[model_type]
        config = getattr(modeling_secateur, PREFIX + stock.__name__)
        AutoConfig.register(TYPE + model_type, config, exist_ok=True)
        for auto, mapping in ((AutoModel, MODEL_MAPPING), (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)):
            model: Any = mapping[stock]
            auto.register(config, getattr(modeling_secateur, PREFIX + model.__name__), exist_ok=True)


def _sliced(text: str) -> tuple[int, str]:
    """The dimension of a layer's input that has a prunable axis, and that axis: the innermost factor of the dimension."""
    spec = axes.parse(text)
    found = [(d, term) for d, dim in enumerate(spec.dims) for term in dim if set(axes.PRUNABLE) & set(term)]
    if len(found) != 1 or len(spec.dims[found[0][0]]) != 1 or found[0][1][-1] not in axes.PRUNABLE:
        raise UserError(f"an input {text!r} of a layer, in the family's table: one dimension may end with a prunable axis.")
    return found[0][0], found[0][1][-1]
