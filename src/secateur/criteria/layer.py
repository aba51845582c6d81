"""What a criterion of whole layers is."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

# Type of statistic -> the statistic of what goes into one layer and what comes out.
LayerSeen = Mapping[type, Any]


@runtime_checkable
class LayerCriterion(Protocol):
    """A frozen dataclass that says how much a whole layer is worth."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[type]]

    def influence(self, seen: LayerSeen) -> float:
        """One number for the layer; larger = keep."""
        ...
