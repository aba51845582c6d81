"""What can be known about the inputs of a module: each statistic is a monoid with an accumulator. Lazy: imports no torch."""

from typing import TYPE_CHECKING

from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.statistics.statistic import Accumulator, Statistic

STATISTICS: "Registry[Statistic]" = Registry(
    kind="statistic",
    group="secateur.statistics",
    builtin={
        "moments": "secateur.statistics.moments:Moments",
        "gram": "secateur.statistics.gram:Gram",
        "gate-gradient": "secateur.statistics.gate_gradient:GateGradient",
        "weight-gradient": "secateur.statistics.weight_gradient:WeightGradient",
        "weight-fisher": "secateur.statistics.weight_gradient:WeightFisher",
        "output-gradient-gram": "secateur.statistics.output_gradient:OutputGradientGram",
    },
)
ACCUMULATORS: "Registry[Accumulator]" = Registry(
    kind="accumulator",
    group="secateur.accumulators",
    builtin={"moments": "secateur.statistics.moments:MomentsAccumulator", "gram": "secateur.statistics.gram:GramAccumulator"},
)
