"""Where gradients come from: one estimator, one file. Lazy: imports no torch."""

from typing import TYPE_CHECKING

from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.gradients.estimator import Estimator

ESTIMATORS: "Registry[Estimator]" = Registry(
    kind="gradient estimator",
    group="secateur.gradients",
    builtin={
        "backprop": "secateur.gradients.backprop:Backprop",
    },
)
