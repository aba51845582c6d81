"""What the layers of one forward pass share: the batch's shape and padding, its choice, and the residual streams they saw."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.runtime.compact import Scratch
from secateur.runtime.selection import Part
from secateur.runtime.state import State

Key = tuple[int, str]


class Chosen(NamedTuple):
    """How one half of one layer came to its choice. `part` is None where nothing was probed."""

    layer: int
    half: str
    part: Part | None
    scores: Float[Tensor, " unit"]
    kept: Int[Tensor, " kept"]

    def tensors(self) -> list[Tensor]:
        return [*(self.part or ()), self.scores, self.kept]


@dataclass(kw_only=True)
class Choice:
    """The kept units of every layer's halves. Goes with a key-value cache, which holds those heads and no others."""

    kept: dict[Key, Int[Tensor, " kept"]] = field(default_factory=dict)
    steps: int = 0
    """Forward passes since the MLP's channels were chosen."""
    prompt: int = 0
    """The first batch's length, where others are to follow it."""


@dataclass(kw_only=True)
class Batch:
    """One forward pass. `fresh`: nothing of its sequences went before."""

    shape: tuple[int, int] = (0, 0)
    valid: Bool[Tensor, "batch token"] | None = None
    choice: Choice = field(default_factory=Choice)
    state: State = field(default_factory=State)
    fresh: bool = True
    dense_prompt: bool = False
    """A prompt runs on the dense layers."""
    whole: Float[Tensor, "batch token hidden"] | None = None
    """The dense layers' residual stream, where they run ahead of the smaller ones."""
    due: bool = False
    """The MLP's channels are to be chosen anew though the sequences go on."""
    scratch: dict[int, Scratch] = field(default_factory=dict)
    """Places for compact weights, by layer; under -1 the one that layers share."""
    low: bool = False
    """All layers share one."""
    cached: bool = False
    """A key-value cache goes with this batch: its choice will be used again."""
    entering: Float[Tensor, "batch token hidden"] | None = None
    """The residual stream in front of the current layer."""
    between: Float[Tensor, "batch token hidden"] | None = None
    """The one in front of the current layer's MLP, once its norm was called."""
    earlier: Float[Tensor, "batch token hidden"] | None = None
    """The one in front of the MLP of the layer before."""
    begun: dict[Key, Callable[[], Chosen]] = field(default_factory=dict)
    """Choices that are being made on a second stream: each is called for its result, once."""
    record: list[Chosen] | None = None
    unfit: list[tuple[int, Tensor]] = field(default_factory=list)

    def enter(self, hidden: Tensor) -> None:
        """A layer begins."""
        self.entering, self.earlier, self.between = hidden, self.between, None

    @property
    def begins(self) -> bool:
        """The dense layers run this pass, at least the prompt in it."""
        return self.dense_prompt and self.fresh

    @property
    def dense(self) -> int:
        """Positions in front whose output is the dense layers': a prompt's that something follows, as a cache or `one_choice` says."""
        if not self.begins:
            return 0
        return self.shape[1] if self.cached else self.choice.prompt

    def stream(self, half: str, which: str) -> tuple[Float[Tensor, "batch token hidden"] | None, bool]:
        """The residual stream that the probe is taken from, and whether it is the half's own; None where only its normalised form is
        known (a norm after the residual sum)."""
        own = self.entering if half == "attention" else self.between
        if which == "own":
            return own, True
        earlier = self.earlier if half == "attention" else self.entering
        return (own, True) if earlier is None else (earlier, False)

    def place(self, layer: int, *, fixed: bool) -> tuple[Scratch, bool]:
        """Where the compact weights of a layer go, and whether other layers use the same place.

        A choice for this batch alone takes no memory of its own; what is the same for every batch, or goes with a cache, is copied
        once.
        """
        shared = self.low or not (fixed or self.cached)
        return self.scratch.setdefault(-1 if shared else layer, Scratch()), shared

    def note(self, chosen: Chosen) -> None:
        """Remember whether a choice was founded on numbers. Looked at after the pass, as looking waits for the device."""
        if chosen.part is not None:
            self.unfit.append((chosen.layer, torch.isfinite(chosen.scores).all()))
        if self.record is not None:
            self.record.append(chosen)
