"""What an allocator is."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from secateur.allocation.ladder import Ladder

# (layer, axis) -> rungs that stay.
Counts = dict[tuple[int, str], int]
# (layer, axis, rungs that stay): one axis of one layer pruned on trial.
Tried = tuple[int, str, int]


@runtime_checkable
class Allocator(Protocol):
    """A frozen dataclass that decides how many rungs of each ladder stay; which units those are is `ladder.choose`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    standardised: ClassVar[bool]
    """It compares scores of different layers and axes, so it wants `unit_scores(..., standardised=True)`."""
    equal: ClassVar[bool]
    """Layers of equal size keep equal counts, whatever the scores."""

    def allocate(self, ladders: Sequence[Ladder], budget: int) -> Counts:
        """(layer, axis) -> rungs that stay, so that about `budget` parameters leave.

        Ladders of layers that are protected are not given. Raises `UserError` if that many cannot leave.
        """
        ...


@runtime_checkable
class Trials(Protocol):
    """The loss of models that are pruned on trial, in nats per predicted token of calibration blocks, their readers compensated."""

    @property
    def comparable(self) -> bool:
        """The ladders' scores are predicted losses per parameter."""
        ...

    def rises(self, wanted: Sequence[Tried], blocks: int, base: Counts | None = None) -> Mapping[Tried, float]:
        """What the loss over so many blocks rises by when that axis of that layer alone is pruned, or otherwise than in `base`."""
        ...

    def loss(self, kept: Counts, *, settle: bool = False) -> float:
        """Over the half of the blocks to search on. `settle`: what is asked next differs little from this one."""
        ...

    def held_out(self, kept: Counts) -> float:
        """Over the other half."""
        ...


@runtime_checkable
class TryingAllocator(Protocol):
    """An allocator that measures before it decides."""

    name: ClassVar[str]
    paper: ClassVar[str]
    standardised: ClassVar[bool]
    equal: ClassVar[bool]

    def decide(self, ladders: Sequence[Ladder], budget: int, trials: Trials) -> Counts:
        """As `Allocator.allocate`."""
        ...

    kept_states: ClassVar[int]
    """Copies of all calibration blocks' hidden states that its trials keep in memory between them."""

    @property
    def walks(self) -> int:
        """Times that its trials read all weights, beside those that a time limit or a number of trials bounds."""
        ...

    @property
    def time_limit(self) -> float:
        """Seconds after which it ends, beside its passes; 0 for one that does not go by the clock."""
        ...

    def passes(self, ladders: Sequence[Ladder], num_layers: int, samples: int) -> float:
        """Forward passes over all `samples` calibration blocks that its trials are worth, at most."""
        ...

    def streams(self, ladders: Sequence[Ladder]) -> int:
        """Copies of hidden states, each of `blocks` blocks, that are held at once, in memory or in files."""
        ...

    @property
    def blocks(self) -> int: ...
