"""What is known of a block's channels before a batch comes: the mean square, and the mean, of what its output matrix reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(kw_only=True)
class History:
    """Running means over samples, one row for each position, or a single row where positions are not told apart.

    `square`, `mean`: [position, channel], float32 with positions, float64 without. `count`: the tokens behind each row. Unit of
    `square`: that of the activation, squared.
    """

    square: Float[Tensor, "row channel"]
    mean: Float[Tensor, "row channel"]
    count: Float[Tensor, " row"]
    extra: dict[str, Tensor] = field(default_factory=dict)
    """`fluctuation` [row, channel] where a state brings its own; else it follows from the two means."""

    changes: int = 0
    """How often tokens were taken in."""

    @classmethod
    def empty(cls, channels: int, positions: int | None, device: torch.device) -> "History":
        rows, dtype = (1, torch.float64) if positions is None else (positions, torch.float32)
        square, mean = (torch.zeros(rows, channels, dtype=dtype, device=device) for _ in range(2))
        return cls(square=square, mean=mean, count=torch.zeros(rows, dtype=torch.float64, device=device))

    @property
    def positional(self) -> bool:
        return len(self.square) > 1

    def at(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "row channel"]:
        """The mean squares of some positions; of one past the last that was seen, the mean over all. One row without positions."""
        rows = len(self.square)
        if rows == 1:
            return self.square
        known = self.square.index_select(0, tokens.clamp_max(rows - 1))
        return torch.where((tokens < rows)[:, None], known, self.square.mean(0))

    def total(self) -> Float[Tensor, " channel"]:
        """The mean squares, summed over the positions."""
        return self.square.sum(0)

    def average(self) -> Float[Tensor, " channel"]:
        return self.mean.mean(0)

    def fluctuation(self) -> Float[Tensor, " channel"]:
        """FLAP's: mean over samples of (x - m)^2, m the mean over samples and positions, summed over the positions."""
        if "fluctuation" in self.extra:
            return self.extra["fluctuation"].sum(0)
        m = self.average()
        return (self.square - 2 * self.mean * m + m.square()).sum(0).clamp_min(0)

    def add(self, x: Float[Tensor, "batch token channel"], valid: Bool[Tensor, "batch token"] | None) -> None:
        """Calibration: exact running means. Positions past the last row are left out."""
        self.changes += 1
        x = x[:, : len(self.square)] if self.positional else x
        weight = _weights(x, valid)
        x = x.to(self.square.dtype) if valid is None else x.to(self.square.dtype).where(weight[..., None] > 0, 0)
        over, known = ((0,), slice(0, x.shape[1])) if self.positional else ((0, 1), slice(0, 1))
        new = weight.sum(over).reshape(-1)
        square, mean = x.square().sum(over).reshape(len(new), -1), x.sum(over).reshape(len(new), -1)
        self.count[known] += new
        seen = self.count[known].clamp_min(1)[:, None]
        for table, total in ((self.square, square), (self.mean, mean)):
            table[known] += ((total - new[:, None] * table[known]) / seen).to(table.dtype)

    @torch.no_grad()
    def follow(
        self,
        x: Float[Tensor, "batch token kept"],
        kept: Int[Tensor, " kept"],
        valid: Bool[Tensor, "batch token"] | None,
        past: float,
    ) -> None:
        """Online: an exponential moving average, of the channels that were kept and the positions that were there."""
        self.changes += 1
        x = x[:, : len(self.square)] if self.positional else x
        # A token with NaN or infinity in it, which the caller reports once the batch is over, must not stay for those that follow.
        weight = _weights(x, valid).float() * torch.isfinite(x).all(-1)
        x = x.float().where(weight[..., None] > 0, 0)
        over = 0 if self.positional else (0, 1)
        seen = weight.sum(over)
        for table, values in ((self.square, x.square()), (self.mean, x)):
            now = values.sum(over) / seen.clamp_min(1)[..., None]
            rows = table[: x.shape[1]] if self.positional else table
            old = rows.index_select(1, kept)
            new = torch.where((seen > 0).reshape(-1, 1), past * old + (1 - past) * now.to(old.dtype), old)
            rows.index_copy_(1, kept, new)

    def tensors(self) -> dict[str, Tensor]:
        return {"square": self.square, "mean": self.mean, "count": self.count, **self.extra}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "History":
        rest = {n: t for n, t in tensors.items() if n not in ("square", "mean", "count")}
        return cls(square=tensors["square"], mean=tensors["mean"], count=tensors["count"], extra=rest)


def _weights(
    x: Float[Tensor, "batch token channel"], valid: Bool[Tensor, "batch token"] | None
) -> Float[Tensor, "batch token"]:
    shape = x.shape[:2]
    if valid is None:
        return torch.ones(shape, dtype=torch.float64, device=x.device)
    return valid[:, : shape[1]].double()
