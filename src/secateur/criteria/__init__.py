"""One paper, one file: statistics -> score per unit. Lazy: imports no torch."""

from typing import TYPE_CHECKING

from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.criteria.criterion import Criterion
    from secateur.criteria.layer import LayerCriterion

CRITERIA: "Registry[Criterion]" = Registry(
    kind="method",
    group="secateur.criteria",
    builtin={
        "random": "secateur.criteria.random:Random",
        "magnitude": "secateur.criteria.magnitude:Magnitude",
        "magnitude-coupled": "secateur.criteria.magnitude:CoupledMagnitude",
        "wanda-sp": "secateur.criteria.wanda_sp:WandaSp",
        "wanda-all": "secateur.criteria.wanda_all:WandaAll",
        "flap": "secateur.criteria.flap:Flap",
        "ppsp": "secateur.criteria.ppsp:PPsp",
        "fms": "secateur.criteria.fms:Fms",
        "taylor": "secateur.criteria.taylor:Taylor",
        "gate-taylor": "secateur.criteria.gate_taylor:GateTaylor",
        "gate-fisher": "secateur.criteria.gate_fisher:GateFisher",
        "gblm": "secateur.criteria.gblm:Gblm",
        "obs": "secateur.criteria.obs:Obs",
        "sensitivity": "secateur.criteria.sensitivity:Sensitivity",
    },
)
LAYER_CRITERIA: "Registry[LayerCriterion]" = Registry(
    kind="method", group="secateur.layer_criteria", builtin={"shortgpt": "secateur.criteria.shortgpt:ShortGpt"}
)
"""Criteria by which whole layers leave."""
