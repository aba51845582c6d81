"""Methods that are whole recipes: a criterion with the choices its paper makes around it, each of which can be overridden."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from secateur.allocation import ALLOCATORS
from secateur.criteria import CRITERIA, LAYER_CRITERIA
from secateur.errors import UserError
from secateur.registry import did_you_mean
from secateur.settings import Axis, PruneSettings

if TYPE_CHECKING:
    from secateur.criteria.criterion import Criterion
    from secateur.criteria.layer import LayerCriterion

DEEP = 16  # layers from which on a model is deep enough to keep its ends whole


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a setting is where the user leaves it open. `first` and `last`: layers of a deep model that stay whole."""

    summary: str
    method: str
    gradient: str | None = None
    compensate: str = "least-squares"
    allocation: str | None = "uniform"
    """None where whole layers leave."""
    axes: tuple[Axis, ...] = ("kv", "ffn")
    first: int = 0
    last: int = 0

    def protect(self, num_layers: int) -> str:
        """In the words of `--protect`."""
        if num_layers < DEEP:
            return ""
        ends = [*range(self.first), *range(-self.last, 0)]
        return ",".join(map(str, ends))


RECIPES: Mapping[str, Recipe] = {
    "mini-llm": Recipe(
        summary="MINI-LLM as we read it: fms, forward-only gradients, uniform, no compensation, ends of deep models kept",
        method="fms",
        gradient="spsa-weights",
        compensate="none",
        first=4,
        last=2,
    ),
    "flap-paper": Recipe(
        summary="FLAP (AL-AM): WIFV, all units of all layers in one ranking, means of what left in biases",
        method="flap",
        compensate="bias",
        allocation="global",
    ),
    "flap-uniform-paper": Recipe(
        summary="FLAP without its ranking between layers (UL-UM): WIFV, uniform, means of what left in biases",
        method="flap",
        compensate="bias",
        allocation="uniform-floor",
    ),
    "wanda-sp-paper": Recipe(
        summary="Wanda-sp as FLAP's authors compare with it: uniform, no compensation",
        method="wanda-sp",
        compensate="none",
        allocation="uniform-floor",
    ),
    "ppsp-paper": Recipe(
        summary="PPsp on calibration statistics alone: uniform, no compensation, first three layers of deep models kept",
        method="ppsp",
        compensate="none",
        allocation="uniform-floor",
        first=3,
    ),
    "magnitude-paper": Recipe(
        summary="norms of the readers' columns, FLAP's control: uniform, no compensation",
        method="magnitude",
        compensate="none",
        allocation="uniform-floor",
    ),
    "llm-pruner": Recipe(
        summary="LLM-Pruner (Element^1): exact gradients, uniform, no compensation, ends of deep models kept",
        method="taylor",
        gradient="backprop",
        compensate="none",
        allocation="uniform-floor",
        first=4,
        last=2,
    ),
}

EFFORTS: Mapping[str, Recipe] = {
    "fast": Recipe(summary="flap, uniform, least squares: one walk", method="flap", allocation="uniform-floor"),
    "balanced": Recipe(
        summary="sensitivity, global, least squares: exact gradients choose", method="sensitivity", allocation="global"
    ),
    "best": Recipe(
        summary="sensitivity, global, sequential: every matrix is refitted beside the dense model",
        method="sensitivity",
        allocation="global",
        compensate="sequential",
    ),
}
DEFAULT = "balanced"
EQUAL = "uniform-scored"
"""What stands for an allocation that compares layers, where they must have equal sizes."""


def recipe_of(settings: PruneSettings) -> Recipe:
    """What the method or the effort stands for: a recipe with the options given, or the defaults around a criterion.

    Raises `UserError` for a method that is neither.
    """
    method = settings.method
    if method is None:
        return EFFORTS[settings.effort or DEFAULT]
    name, colon, options = method.partition(":")
    if name in RECIPES:
        return replace(RECIPES[name], method=f"{RECIPES[name].method}{colon}{options}")
    if name in LAYER_CRITERIA.names():
        return Recipe(summary="", method=method, compensate="none", allocation=None, axes=())
    known = [*CRITERIA.names(), *LAYER_CRITERIA.names(), *RECIPES]
    if name in EFFORTS:
        raise UserError(
            f"{method!r} is not a method: {name} is an effort, and an effort takes no options. Write `--effort {name}` (or {name} "
            f"alone among the entries of a comparison), or name a method."
        )
    if name not in known:
        raise UserError(
            f"unknown method {name!r}.{did_you_mean(name, [*known, *EFFORTS])} Known: {', '.join(sorted(known))}; and the efforts "
            f"{', '.join(EFFORTS)}."
        )
    return Recipe(summary="", method=method)


def criterion_of(settings: PruneSettings) -> "Criterion | LayerCriterion":
    """The criterion of a method, of units or of whole layers, with the options given."""
    chosen = recipe_of(settings).method
    layers = chosen.partition(":")[0] in LAYER_CRITERIA.names()
    return LAYER_CRITERIA.spelled(chosen) if layers else CRITERIA.spelled(chosen)


def _shared(recipe: Recipe, *, stock: bool) -> str | None:
    """The allocation of a recipe; one with equal layers where only these will do."""
    own = recipe.allocation
    return EQUAL if stock and own and not ALLOCATORS[own].equal else own


def resolved(settings: PruneSettings, num_layers: int) -> PruneSettings:
    """The settings with nothing left open. `method` keeps a recipe's name; instead of an effort stands what it chose.

    A stock checkpoint has equal layers, so `--format stock` means one that gives such where none is given.
    """
    recipe = recipe_of(settings)
    given = {
        "method": settings.method or recipe.method,
        "effort": None,
        "compensate": settings.compensate or recipe.compensate,
        "allocation": settings.allocation or _shared(recipe, stock=settings.format == "stock"),
        "axes": recipe.axes if settings.axes is None else settings.axes,
        "protect": recipe.protect(num_layers) if settings.protect is None else settings.protect,
        "gradient": settings.gradient or recipe.gradient,
    }
    return settings.model_copy(update=given)
