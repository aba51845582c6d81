"""What can be known about a module and its units. Lazy: imports no torch.

Statistics of a module's input, or of a whole layer's input and output, are monoids, each with an accumulator; what gradients are
reduced to is mostly not.
"""

from typing import TYPE_CHECKING

from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.statistics.statistic import Accumulator, Finding

STATISTICS: "Registry[Finding]" = Registry(
    kind="statistic",
    group="secateur.statistics",
    builtin={
        "moments": "secateur.statistics.moments:Moments",
        "gram": "secateur.statistics.gram:Gram",
        "layer-cosine": "secateur.statistics.layer_cosine:LayerCosine",
        "gate-gradient": "secateur.statistics.gate_gradient:GateGradient",
        "weight-gradient": "secateur.statistics.weight_gradient:WeightGradient",
        "weight-fisher": "secateur.statistics.weight_gradient:WeightFisher",
        "output-gradient-gram": "secateur.statistics.output_gradient:OutputGradientGram",
    },
)
ACCUMULATORS: "Registry[Accumulator]" = Registry(
    kind="accumulator",
    group="secateur.accumulators",
    builtin={
        "moments": "secateur.statistics.moments:MomentsAccumulator",
        "gram": "secateur.statistics.gram:GramAccumulator",
        "layer-cosine": "secateur.statistics.layer_cosine:LayerCosineAccumulator",
    },
)
