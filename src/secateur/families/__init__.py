"""One named-axis table per architecture family. Names are listed, and tables read, without importing torch.

Another package adds a family with an entry point of the group `secateur.families`: model type = "module:ATTRIBUTE".
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from secateur.errors import UserError
from secateur.families.family import Config, Family
from secateur.registry import Registry

ENTRY_POINTS = "secateur.families"

_LLAMA = "secateur.families.llama:LLAMA"
TABLES: Mapping[str, str] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "gemma": _LLAMA,
        "gemma2": _LLAMA,
        "gemma3_text": _LLAMA,
        "phi": "secateur.families.phi:PHI",
        "phi3": "secateur.families.phi3:PHI3",
        "gpt2": "secateur.families.gpt2:GPT2",
        "gpt_neo": "secateur.families.gpt_neo:GPT_NEO",
        "gpt_neox": "secateur.families.gpt_neox:GPT_NEOX",
        "bloom": "secateur.families.bloom:BLOOM",
        "opt": "secateur.families.opt:OPT",
    }
)
"""Model type -> "module:ATTRIBUTE" of its table."""
REGISTRY = Registry[Family](kind="model type", group=ENTRY_POINTS, builtin=TABLES)


def model_types() -> tuple[str, ...]:
    """Model types that have a table: the built-in ones in order, then those of other packages."""
    return tuple(REGISTRY.names())


def family_for(config: Config) -> Family:
    """The table of a configuration's model type. Raises UserError where there is none."""
    given = getattr(config, "model_type", None)
    # Looking up the entry points of every installed package takes a while: only for a type that is not built in.
    tables = TABLES if given in TABLES else REGISTRY.names()
    if given is None or given not in tables:
        raise UserError(
            f"the architecture {given!r} is not supported. Supported model types: {', '.join(tables)}. To add one, write a "
            f"table of its weights' axes in src/secateur/families, one line in TABLES there and one tiny configuration for "
            f"the contract tests, or register an entry point {ENTRY_POINTS!r} in a package of your own: see docs/families.md."
        )
    module, _, attribute = tables[given].partition(":")
    family = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(family, Family) or given not in family.stock:
        raise UserError(
            f"{tables[given]!r}, registered for the model type {given!r}, is not a secateur.families.family.Family that has a "
            f"`stock` entry for {given!r}. Mend or remove the package that registers it under {ENTRY_POINTS!r}."
        )
    return family
