"""ShortGPT: layers that hardly turn the hidden state leave whole.      https://arxiv.org/abs/2403.03853

    BI_l = 1 - E_t[ cos(h_t before layer l, h_t after it) ]      block influence

All layers are ranked once, in the whole model, and those of lowest influence leave.
"""

from dataclasses import dataclass
from typing import ClassVar

from secateur.criteria.layer import LayerSeen
from secateur.statistics.layer_cosine import LayerCosine


@dataclass(frozen=True, kw_only=True)
class ShortGpt:
    """ShortGPT: whole layers leave, those that turn the hidden state least (block influence)."""

    name: ClassVar = "shortgpt"
    paper: ClassVar = "https://arxiv.org/abs/2403.03853"
    needs: ClassVar[frozenset[type]] = frozenset({LayerCosine})

    def influence(self, seen: LayerSeen) -> float:
        """BI, dimensionless, in [0, 2]; 0 for a layer that leaves every hidden state's direction as it is."""
        return 1 - seen[LayerCosine].mean
