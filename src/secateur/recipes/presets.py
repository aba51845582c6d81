"""Methods that are whole recipes: a criterion with the choices its paper makes around it, each of which can be overridden."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from secateur.criteria import CRITERIA
from secateur.errors import UserError
from secateur.registry import did_you_mean
from secateur.settings import PruneSettings

DEEP = 16  # layers from which on a model is deep enough to keep its ends whole


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a setting is where the user leaves it open. `first` and `last`: layers of a deep model that stay whole."""

    summary: str
    method: str
    gradient: str | None = None
    compensate: str = "least-squares"
    allocation: str = "uniform"
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
}

EFFORTS: Mapping[str, Recipe] = {
    "fast": Recipe(summary="flap, uniform, least squares: one walk", method="flap"),
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
    known = [*CRITERIA.names(), *RECIPES]
    if name not in known:
        raise UserError(f"unknown method {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")
    return Recipe(summary="", method=method)


def resolved(settings: PruneSettings, num_layers: int) -> PruneSettings:
    """The settings with nothing left open. `method` keeps a recipe's name; instead of an effort stands what it chose.

    A stock checkpoint has equal layers, so `--stock` means the uniform allocation where none is given.
    """
    recipe = recipe_of(settings)
    given = {
        "method": settings.method or recipe.method,
        "effort": None,
        "compensate": settings.compensate or recipe.compensate,
        "allocation": settings.allocation or ("uniform" if settings.stock else recipe.allocation),
        "protect": recipe.protect(num_layers) if settings.protect is None else settings.protect,
        "gradient": settings.gradient or recipe.gradient,
    }
    return settings.model_copy(update=given)
