"""From what a probe and a history say of each channel to a score for each unit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.errors import UserError
from secateur.runtime.griffin import statistic
from secateur.runtime.history import History
from secateur.runtime.probe_pruning import ProbePruning

TINY = 1e-6  # in the denominator of the fusion, as the paper's code has it


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a score needs of the matrix that reads the channels: computed once, float32 [channel].

    `power`: the sum over outputs of |W|^p to the 1/q, of each metric: (sum W^4)^(1/2), sum |W|, sum W^2; one
    for griffin, which looks at no weights.
    """

    power: Float[Tensor, " channel"]
    units: int

    @classmethod
    def of(cls, weight: Float[Tensor, "channel out"], metric: str, units: int) -> "Reading":
        sums = {
            "ppsp": lambda w: w.square().square().sum(1).sqrt(),
            "wanda-sp": lambda w: w.abs().sum(1),
            "flap": lambda w: w.square().sum(1),
            "griffin": lambda w: w.new_ones(len(w)),
        }
        rows = [sums[metric](part.double()) for part in weight.split(1024)]
        return cls(power=torch.cat(rows).float(), units=units)


def importance(
    x: Float[Tensor, "sample token channel"],
    tokens: Int[Tensor, " token"],
    history: History | None,
    how: ProbePruning,
    valid: Bool[Tensor, "sample token"] | None,
) -> Float[Tensor, " channel"]:
    """What the probed tokens, of these positions, and the history say of each channel."""
    if how.metric == "griffin":
        return statistic(x, valid)
    return fused(probe_square(x, valid), tokens, history, how, valid)


def probe_square(
    x: Float[Tensor, "sample token channel"], valid: Bool[Tensor, "sample token"] | None
) -> Float[Tensor, "token channel"]:
    """Mean over the probe's samples of x^2; zero where all of them are padding."""
    x = x.float()
    if valid is None:
        return x.square().mean(0)
    weight = valid[..., None]
    return x.square().where(weight, 0).sum(0) / weight.sum(0).clamp_min(1)


def fused(
    p: Float[Tensor, "token channel"],
    tokens: Int[Tensor, " token"],
    history: History | None,
    how: ProbePruning,
    valid: Bool[Tensor, "sample token"] | None,
) -> Float[Tensor, " channel"]:
    """c, the importance of each channel in this batch."""  # fmt: skip
    if history is None:
        return p.sum(0)
    if history.positional:
        v = history.at(tokens).float()
    else:
        seen = p.new_tensor(len(p)) if valid is None else valid.any(0).sum().clamp_min(1)
        p, v = p.sum(0, keepdim=True) / seen, history.square.float()
    share = p / (p + v + TINY) if how.fusion == "scaled" else how.fusion
    return (share * p + (1 - share) * v).sum(0)


def remembered(history: History, how: ProbePruning) -> Float[Tensor, " channel"]:
    """c where the history alone says it."""
    return (history.fluctuation() if how.metric == "flap" else history.total()).float()


def scores(c: Float[Tensor, " channel"], reading: Reading, metric: str) -> Float[Tensor, " unit"]:
    """Larger stays. Unit: (activation x weight)^2 for ppsp and flap, activation x weight for wanda-sp, none for griffin."""
    if metric == "ppsp":
        return torch.linalg.vector_norm((c * reading.power).view(reading.units, -1), dim=1)
    channel = c.sqrt() if metric == "wanda-sp" else c
    return (channel * reading.power).view(reading.units, -1).sum(1)


def best(score: Float[Tensor, " unit"], count: int, groups: int = 1) -> Int[Tensor, " kept"]:
    """The units that stay, ascending: `count` of each of `groups` equal runs of units."""
    if groups == 1:
        return score.topk(count).indices.sort().values
    rows = score.view(groups, -1)
    kept = rows.topk(count, dim=1).indices.sort(dim=1).values
    return (kept + torch.arange(groups, device=kept.device)[:, None] * rows.shape[1]).flatten()


def require_fit(sound: Sequence[tuple[int, Tensor]]) -> None:
    """Raises `UserError` where a layer found NaN or infinity: (layer, whether it did not). Looking waits for the device, once."""
    found = torch.stack([fit for _, fit in sound]).tolist() if sound else []
    if not all(found):
        raise UserError(
            f"the states in front of layer {sound[found.index(False)][0]} hold NaN or infinity, so nothing can be chosen for this "
            "batch. Look at its inputs (embeddings given directly?), and compute in bf16 or fp32 instead of fp16."
        )
