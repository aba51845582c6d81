"""Probe Pruning: a small part of each batch runs ahead and says what the batch may skip.   https://arxiv.org/abs/2502.15618

    E[b,s] = ||R[b,s]||_2                       residual stream R in front of a block: which tokens, then which samples, are probed
    p[s,k] = mean over probe samples of X^2     X what the block's output matrix reads, for the probe alone
    f      = (p^2 + v^2) / (p + v)              importance-scaled fusion with the history v of the same positions
    c[k]   = sum over s of f[s,k]
    I[k]   = c[k] (sum_i W[i,k]^4)^(1/2)        PPsp; a head: the norm of its channels' I
    v     <- 0.99 v + 0.01 mean_b X^2           online, of what was kept

`ProbePruning.paper()` is the method as its code runs it (section 1 of that code's behaviour is in docs/papers/probe_pruning.md);
the default is what serves: history for each channel and not for each position, frozen, whole key-value heads, and a floor to the
number of probed tokens, below which the probe says less than the history.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from secateur.errors import UserError
from secateur.runtime.cost import Cost
from secateur.runtime.probe import Probe

Attention = Literal["kv", "group", "heads", "none"]


@dataclass(frozen=True, kw_only=True)
class ProbePruning:
    """How a model is pruned anew for each batch.

    `probe`: None leaves the choice to the history alone, the same for every batch; so it is in a half that is not `probed`.
    `history`: a mean square for each channel, for
    each position and channel, or none at all. `fusion`: "scaled" as above, or the fixed share of the probe. `metric`: what makes a
    score of c and the output matrix. `attention`: what leaves there: whole key-value heads; query heads, as many in each
    key-value head's group; query heads wherever they are (keys and values are then gathered once for each head that reads them);
    or nothing. `mlp`: whether channels leave. `compensate`: "mean" puts the mean of what was dropped into the output. `ema`: the
    weight of the past when the history is updated online; None freezes it. `prompt`: "dense" runs a prompt on the dense layers, the
    whole of it as a probe that costs nothing, and what follows it on what it chose; a pass that nothing follows, as it leaves no
    cache, runs itself on that, after the dense layers have. `keep_first`: layers that stay dense. `cost`: where a probe does not
    pay (few tokens), the history chooses, if there is one.
    `share_ratio`: "paper" prunes the other layers more for these, rounds down to whole heads, and channels up to
    `round_to`; "plain" prunes every layer that is pruned by the ratio itself, to the nearest count.
    """

    name: ClassVar = "probe-pruning"
    paper_url: ClassVar = "https://arxiv.org/abs/2502.15618"
    probe: Probe | None = field(default_factory=Probe)
    probed: tuple[Literal["attention", "mlp"], ...] = ("mlp",)
    history: Literal["channel", "position", "none"] = "channel"
    fusion: Literal["scaled"] | float = "scaled"
    metric: Literal["ppsp", "wanda-sp", "flap", "griffin"] = "ppsp"
    attention: Attention = "kv"
    mlp: bool = True
    compensate: Literal["none", "mean"] = "mean"
    ema: float | None = None
    prompt: Literal["pruned", "dense"] = "pruned"
    keep_first: int = 0
    cost: Cost = field(default_factory=Cost)
    share_ratio: Literal["plain", "paper"] = "plain"
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.history == "none" and (self.probe is None or (self.attention != "none" and "attention" not in self.probed)):
            raise UserError("a half has neither a probe nor a history, so nothing says what to skip. Give one of them.")
        if self.metric == "flap" and self.probe is not None:
            raise UserError("the metric `flap` needs variances, which a probe does not have. Use it with probe=None.")
        if self.metric == "griffin" and (self.probe is None or self.history != "none" or self.attention != "none"):
            raise UserError(
                "the metric `griffin` is of MLP channels, and of the batch alone. Use it with a probe, history='none' and "
                "attention='none', as ProbePruning.griffin() does."
            )
        if self.prompt == "dense" and (self.attention != "none" or self.ema is not None):
            raise UserError(
                "a dense prompt fills the key-value cache of all heads, and shows no history what is kept. Use prompt='dense' with "
                "attention='none' and ema=None."
            )
        if self.compensate == "mean" and self.history == "none":
            raise UserError("compensate='mean' needs a history. Use compensate='none' without one.")
        if self.fusion != "scaled" and not 0 <= self.fusion <= 1:
            raise UserError(f"fusion is {self.fusion!r}. Allowed: 'scaled', or the share of the probe from 0 to 1.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}. Allowed: from 0, below 1 (0.99 is the paper's), or None for a frozen history.")
        if self.attention == "none" and not self.mlp:
            raise UserError("attention='none' and mlp=False leave nothing to prune. Allow one of them.")
        if self.keep_first < 0 or self.round_to < 1:
            raise UserError(f"keep_first={self.keep_first}, round_to={self.round_to}. Allowed: from 0, and from 1.")

    @classmethod
    def paper(
        cls, *, probe: Probe | None = None, keep_first: int = 3, round_to: int = 64, attention: Attention = "heads"
    ) -> "ProbePruning":
        """The published method. It prunes query heads one by one, which under grouped queries leaves keys and values whole."""
        return cls(
            probe=probe or Probe(least=2, most=1.0, first=10), history="position", attention=attention, compensate="none", ema=0.99,
            keep_first=keep_first, share_ratio="paper", round_to=round_to, probed=("attention", "mlp"),
            cost=Cost(share=math.inf),
        )  # fmt: skip

    @classmethod
    def griffin(cls) -> "ProbePruning":
        """GRIFFIN (`runtime/griffin.py`): MLP channels by the whole prompt, which itself runs dense. Needs no calibration."""
        return cls(
            probe=Probe(tokens=1.0, samples=1.0, most=1.0), history="none", metric="griffin", attention="none", compensate="none",
            prompt="dense",
        )  # fmt: skip
