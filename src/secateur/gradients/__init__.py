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
        "forward-mode": "secateur.gradients.forward_mode:ForwardMode",
        "spsa-gates": "secateur.gradients.spsa_gates:SpsaGates",
        "spsa-weights": "secateur.gradients.spsa_weights:SpsaWeights",
        "random": "secateur.gradients.random:Random",
        "constant": "secateur.gradients.constant:Constant",
    },
)
