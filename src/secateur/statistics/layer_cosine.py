"""How little a whole layer turns the hidden state: cosines of what goes in and what comes out, summed over tokens."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.statistic import not_finite

TOKENS = 256  # at a time: their float64 copies stay small beside a layer


class LayerCosine(NamedTuple):
    """Sum over tokens of cos(h_in, h_out), float64; dimensionless. A state that is zero before and after counts as unturned."""

    count: int  # type: ignore[assignment]
    total: Float[Tensor, ""]

    kind = "layer-cosine"  # type: ignore[misc]

    @classmethod
    def of(cls, before: Float[Tensor, "*token hidden"], after: Float[Tensor, "*token hidden"]) -> "LayerCosine":
        """Of the hidden states before and after one layer. NaN and infinity in them make the total NaN."""
        before, after = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
        total = torch.zeros((), dtype=torch.float64, device=before.device)
        for x, y in zip(before.split(TOKENS), after.split(TOKENS), strict=True):
            x, y = x.double(), y.double()
            lengths = x.norm(dim=1) * y.norm(dim=1)
            same = (x == y).all(dim=1).double()
            total += torch.where(lengths == 0, same, (x * y).sum(1) / lengths).sum()
        return cls(len(before), total)

    def __add__(self, other: "LayerCosine") -> "LayerCosine":  # type: ignore[override]
        return LayerCosine(self.count + other.count, self.total + other.total)

    @property
    def mean(self) -> float:
        """E cos(h_in, h_out) over tokens, in [-1, 1]. Raises `UserError` if no token was seen."""
        if not self.count:
            raise UserError("a mean cosine needs at least 1 token, and none was seen. Calibrate with more text.")
        return float(self.total) / self.count

    def to_tensors(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count, dtype=torch.int64), "total": self.total}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "LayerCosine":
        return cls(int(tensors["count"]), tensors["total"].double())

    def finite(self) -> bool:
        return bool(self.total.isfinite())

    def require_finite(self, where: str) -> "LayerCosine":
        if not self.finite():
            raise UserError(not_finite(self.kind, where))
        return self


class LayerCosineAccumulator:
    """Cosines of a stream of token blocks; memory is one number and the float64 copies of 256 tokens."""

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self._channels = channels
        self._sum = LayerCosine(0, torch.zeros((), dtype=torch.float64, device=device))

    def update(self, before: Float[Tensor, "*token hidden"], after: Float[Tensor, "*token hidden"]) -> None:
        assert before.shape[-1] == self._channels, f"{before.shape[-1]} channels, expected {self._channels}"
        self._sum += LayerCosine.of(before, after)

    def result(self) -> LayerCosine:
        return self._sum
