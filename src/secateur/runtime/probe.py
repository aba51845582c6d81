"""How large a probe is, and what it is taken from."""

from dataclasses import dataclass
from typing import Literal

from secateur.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Which part of a batch runs ahead.

    `tokens`, `samples`: fractions of the positions and of the samples. `least`: tokens (positions times samples) that a probe
    has at least, where the batch has as many; `most`: the fraction of the batch's tokens that it has at most, but for `least`.
    The paper's probe has half of the positions even where there is one sample, which costs more than it saves. `first`: a probe
    of at most so many positions holds position 0. `order`: what is chosen first, the other among its tokens alone. `rank`: by
    the norm of the residual stream, of the block's normalised input, or evenly spread whatever they hold. `stream`: the states
    that are probed are the block's own, or those one block earlier; on CUDA an MLP's probe then runs on a second stream, beside the
    layer's attention (unless `rank` is "normed").
    """

    tokens: float = 0.5
    samples: float = 0.05
    least: int = 64
    most: float = 0.025
    first: int = 0
    order: Literal["tokens", "samples"] = "tokens"
    rank: Literal["residual", "normed", "even"] = "residual"
    stream: Literal["own", "earlier"] = "own"

    def __post_init__(self) -> None:
        for name in ("tokens", "samples", "most"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"the probe's fraction of {name} is {getattr(self, name)}. Allowed: above 0, at most 1.")
        if self.least < 1 or self.first < 0:
            raise UserError(f"least={self.least}, first={self.first}. Allowed: least from 1, first from 0.")

    @property
    def early(self) -> bool:
        """Whether it reads nothing but a residual stream that is known before the block in front has run."""
        return self.stream == "earlier" and self.rank != "normed"
