"""The ways to make up in a reader for the units that left. Lazy: imports no torch."""

from typing import TYPE_CHECKING

from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.surgery.compensate import Compensation

COMPENSATIONS: "Registry[Compensation]" = Registry(
    kind="compensation",
    group="secateur.compensations",
    builtin={
        "none": "secateur.surgery.compensate:NoCompensation",
        "bias": "secateur.surgery.compensate:BiasCompensation",
        "least-squares": "secateur.surgery.compensate:LeastSquares",
        "sequential": "secateur.surgery.sequential:Sequential",
    },
)
