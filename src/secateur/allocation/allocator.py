"""What an allocator is."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from secateur.allocation.ladder import Ladder


@runtime_checkable
class Allocator(Protocol):
    """A frozen dataclass that decides how many rungs of each ladder stay; which units those are is `ladder.choose`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    standardised: ClassVar[bool]
    """It compares scores of different layers and axes, so it wants `unit_scores(..., standardised=True)`."""

    def allocate(self, ladders: Sequence[Ladder], budget: int) -> dict[tuple[int, str], int]:
        """(layer, axis) -> rungs that stay, so that about `budget` parameters leave.

        Ladders of layers that are protected are not given. Raises `UserError` if that many cannot leave.
        """
        ...
