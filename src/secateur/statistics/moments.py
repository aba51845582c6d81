"""Count, mean and centred sum of squares of every input channel of a module.

Merged as Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.statistic import not_finite

COLUMNS = 256  # channels at a time: the float64 copies of 1024 tokens stay in the processor's cache


class Moments(NamedTuple):
    """First and second moments over tokens, float64. `m2` is the sum over tokens of (x - mean)^2."""

    count: int  # type: ignore[assignment]
    mean: Float[Tensor, " channel"]
    m2: Float[Tensor, " channel"]

    kind = "moments"  # type: ignore[misc]

    @classmethod
    def of(cls, x: Float[Tensor, "*token channel"]) -> "Moments":
        """Moments of the tokens of x. Unit: that of x (mean) and its square (m2)."""
        x = x.reshape(-1, x.shape[-1])
        mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        m2 = torch.zeros_like(mean)
        if len(x):
            ones = torch.ones(len(x), dtype=torch.float64, device=x.device)  # sums as products: half the time of sum(0)
            for start in range(0, x.shape[1], COLUMNS):
                centred = x[:, start : start + COLUMNS].to(torch.float64, copy=True)
                mean[start : start + COLUMNS] = (ones @ centred) / len(x)
                centred -= mean[start : start + COLUMNS]
                m2[start : start + COLUMNS] = ones @ centred.square_()
        return cls(len(x), mean, m2)

    def __add__(self, other: "Moments") -> "Moments":  # type: ignore[override]
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        return Moments(count, mean, self.m2 + other.m2 + delta.square() * (self.count * other.count / count))

    @property
    def variance(self) -> Float[Tensor, " channel"]:
        """Unbiased variance over tokens. Raises `UserError` for fewer than two tokens."""
        if self.count < 2:
            raise UserError(f"a variance needs at least 2 tokens, and {self.count} were seen. Calibrate with more text.")
        return self.m2 / (self.count - 1)

    @property
    def sum_of_squares(self) -> Float[Tensor, " channel"]:
        """Sum over tokens of x^2."""
        return self.m2 + self.count * self.mean.square()

    @property
    def second_moment(self) -> Float[Tensor, " channel"]:
        """E x^2, the mean over tokens of x^2. Raises `UserError` if no token was seen."""
        if not self.count:
            raise UserError("a second moment needs at least 1 token, and none was seen. Calibrate with more text.")
        return self.sum_of_squares / self.count

    def to_tensors(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count, dtype=torch.int64), "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        return cls(int(tensors["count"]), tensors["mean"].double(), tensors["m2"].double())

    def finite(self) -> bool:
        return bool(self.mean.isfinite().all() and self.m2.isfinite().all())

    def require_finite(self, where: str) -> "Moments":
        if not self.finite():
            raise UserError(not_finite(self.kind, where))
        return self


class MomentsAccumulator:
    """Moments of a stream of token blocks; memory is a few vectors and one block of 256 float64 columns.

    Each block costs about 8 ms for 1024 x 11008 bf16 values on one core.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        zero = torch.zeros(channels, dtype=torch.float64, device=device)
        self._sum = Moments(0, zero, zero)

    def update(self, x: Float[Tensor, "*token channel"]) -> None:
        assert x.shape[-1] == len(self._sum.mean), f"{x.shape[-1]} channels, expected {len(self._sum.mean)}"
        self._sum += Moments.of(x)

    def result(self) -> Moments:
        return self._sum
