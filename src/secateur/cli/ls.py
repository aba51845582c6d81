"""`secateur ls`: what there is to choose from, without importing any of it."""

import ast
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument

from secateur.cli.options import Json
from secateur.cli.output import Output


def ls(
    what: Annotated[
        Literal["methods", "families", "estimators", "presets"], Argument(help="What to list.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """List the methods, model families, gradient estimators or text presets that are known."""
    with Output(json) as output:
        output.show(what, {what: LISTS[what]()})


def methods() -> list[dict[str, str]]:
    from secateur.criteria import CRITERIA, LAYER_CRITERIA
    from secateur.recipes.presets import RECIPES

    criteria = _described({**CRITERIA.names(), **LAYER_CRITERIA.names()})
    return criteria + [{"name": name, "summary": recipe.summary} for name, recipe in RECIPES.items()]


def families() -> list[dict[str, str]]:
    from secateur.families import model_types

    return [{"name": name} for name in model_types()]


def estimators() -> list[dict[str, str]]:
    from secateur.gradients import ESTIMATORS

    return [{"name": name, "summary": _summary(place.partition(":")[0])} for name, place in ESTIMATORS.names().items()]


def presets() -> list[dict[str, str]]:
    from secateur.calibration.presets import PRESETS

    return [{"name": name, "summary": preset.summary} for name, preset in PRESETS.items()]


LISTS: Mapping[str, Callable[[], list[dict[str, str]]]] = {
    "methods": methods,
    "families": families,
    "estimators": estimators,
    "presets": presets,
}


def _described(places: Mapping[str, str]) -> list[dict[str, str]]:
    """A row for each registered class: its name and the first line of what its source says about it."""
    return [{"name": name, "summary": _summary(place)} for name, place in places.items()]


def _summary(place: str) -> str:
    module, _, attribute = place.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute]
    text = next(filter(None, map(ast.get_docstring, [*found, tree])), "")
    return re.split(r"\n|\s{2,}", text)[0]
