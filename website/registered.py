"""What can be named on the command line, described out of its own code: docstrings, options and their defaults."""

import ast
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from secateur.allocation import ALLOCATORS
from secateur.criteria import CRITERIA, LAYER_CRITERIA
from secateur.gradients import ESTIMATORS
from secateur.recipes.presets import EFFORTS, RECIPES, Recipe
from secateur.surgery.compensations import COMPENSATIONS

RUNTIME = {
    "probe-pruning": "secateur.runtime.probe_pruning:ProbePruning",
    "probe-refit": "secateur.runtime.probe_refit:ProbeRefit",
}
CLASSES: Mapping[str, Mapping[str, str]] = {
    "criterion": {**CRITERIA.builtin, **LAYER_CRITERIA.builtin},
    "gradient": ESTIMATORS.builtin,
    "compensation": COMPENSATIONS.builtin,
    "allocation": ALLOCATORS.builtin,
    "runtime": RUNTIME,
}
CHOICES: Mapping[str, Mapping[str, Recipe]] = {"recipe": RECIPES, "effort": EFFORTS}
SPELLED = {
    "criterion": "--method", "recipe": "--method", "effort": "--effort", "gradient": "--gradient", "compensation": "--compensate",
    "allocation": "--allocation",
}  # fmt: skip


def names() -> set[str]:
    """`kind:name` of everything that must have a page."""
    return {f"{kind}:{name}" for table in (CLASSES, CHOICES) for kind, known in table.items() for name in known}


def describe(spelled: Sequence[str]) -> str:
    """A part for each `kind:name`. Raises `KeyError` for one that does not exist."""
    seen: set[str] = set()
    parts = []
    for one in spelled:
        kind, _, name = one.partition(":")
        title = f"### `{SPELLED[kind]} {name}`" if kind in SPELLED else f"### `{name}`"
        if kind in CHOICES:
            parts.append(f"{title}\n\n{_sentence(CHOICES[kind][name].summary)}\n\n{_choices(CHOICES[kind][name])}")
        else:
            parts.append(f"{title}\n\n{_described(CLASSES[kind][name], seen)}")
    return "\n\n".join(parts)


def _choices(recipe: Recipe) -> str:
    ends = f"first {recipe.first}, last {recipe.last}" if recipe.first or recipe.last else "none"
    rows = {
        "scores by": f"`{recipe.method}`",
        "`--gradient`": f"`{recipe.gradient}`" if recipe.gradient else "`backprop` where it needs one",
        "`--compensate`": f"`{recipe.compensate}`",
        "`--allocation`": f"`{recipe.allocation}`",
        "`--axes`": f"`{','.join(recipe.axes)}`",
        "layers of deep models (16 and more) that stay whole": ends,
    }
    return "\n".join(["| choice | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _described(place: str, seen: set[str]) -> str:
    """The docstrings of a class and, the first time, of its module; its options."""
    module_name, _, attribute = place.partition(":")
    module: Any = importlib.import_module(module_name)
    kind: Any = getattr(module, attribute)
    parts = []
    if module_name not in seen and module.__doc__:
        parts.append(f"```text\n{inspect.cleandoc(module.__doc__)}\n```")
        seen.add(module_name)
    if said := _own_doc(kind):
        parts.append(said)
    if wanted := getattr(kind(), "needs", None):  # of an instance: they may follow from its options
        parts.append(f"Statistics that it asks for: {', '.join(sorted(f'`{n.__name__}`' for n in wanted))}.")
    return "\n\n".join([*parts, _options(kind, module)])


def _own_doc(kind: type) -> str:
    """What the class says of itself; a dataclass without a docstring gets a signature for one."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    return "" if doc.startswith(f"{kind.__name__}(") else doc


def _options(kind: Any, module: Any) -> str:
    said = _said_of_fields(kind)
    rows = [f"| `{f.name}` | `{_default(f)}` | {_resolved(said.get(f.name, ''), module)} |" for f in fields(kind) if f.init]
    if not rows:
        return "It has no options."
    return "\n".join(["| option | default | |", "|---|---|---|", *rows])


def _default(one: Field[Any]) -> str:
    if one.default is not MISSING:
        return f"{one.default}" if not isinstance(one.default, bool) else str(one.default).lower()
    if one.default_factory is not MISSING:
        return re.sub(r"\s+", " ", repr(one.default_factory())).replace("|", "\\|")
    return "required"


def _said_of_fields(kind: type) -> dict[str, str]:
    """The string below each field of a class."""
    tree = ast.parse(inspect.cleandoc(inspect.getsource(kind)))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    said = {}
    for one, below in zip(body, body[1:], strict=False):
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, str):
            said[one.target.id] = " ".join(text.split())
    return said


def _resolved(text: str, module: Any) -> str:
    """Constants of the module that a text names, as their values."""

    def value(found: re.Match[str]) -> str:
        known = getattr(module, found[1], None)
        return ", ".join(f"`{one}`" for one in known) if isinstance(known, tuple | list | dict) else found[0]

    return re.sub(r"`([A-Z][A-Z_]+)`", value, text).replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
