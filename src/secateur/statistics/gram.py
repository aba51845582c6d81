"""The second-moment matrix of a module's input: what least squares and optimal brain surgeon need to know."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.precision import full_float32
from secateur.statistics.statistic import not_finite

ROWS = 512
"""Rows of the matrix at a time: one float32 panel of 512 x 11008 is 22 MB."""
TOKENS = 256
"""Tokens of one product."""
PRODUCTS = 8
"""Products that are added in float32 before their sum is in float64, which takes three times as long."""

MASSIVE = 4
"""The mean of a diagonal is above four medians where a few channels are most of it."""
DEAD = 1e-10
"""Of the mean: what is below is the rounding of a channel that never varies."""


class Gram(NamedTuple):
    """Sum over tokens of x x^T, symmetric and not centred: float64 if x was, else float32.

    A sum that was gathered in float64 is rounded to float32 once, at the end: half the bytes, an error (6e-8 of an entry) below
    that of the products in it and far below the ridge that every use of it adds, and the same matrix whether it comes from the
    accumulator or from a file.
    """

    count: int  # type: ignore[assignment]
    matrix: Float[Tensor, "channel channel"]

    kind = "gram"  # type: ignore[misc]

    @classmethod
    def of(cls, x: Float[Tensor, "*token channel"]) -> "Gram":
        accumulator = GramAccumulator(x.shape[-1], x.device)
        accumulator.update(x)
        return accumulator.result()

    def __add__(self, other: "Gram") -> "Gram":  # type: ignore[override]
        return Gram(self.count + other.count, self.matrix + other.matrix)

    def to_tensors(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count, dtype=torch.int64), "matrix": self.matrix}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Gram":
        return cls(int(tensors["count"]), tensors["matrix"])

    def finite(self) -> bool:
        # A minimum and a maximum are NaN if any entry is, and need no temporary.
        return all(bool(torch.stack(rows.aminmax()).isfinite().all()) for rows in self.matrix.split(ROWS))

    def require_finite(self, where: str) -> "Gram":
        if not self.finite():
            raise UserError(not_finite(self.kind, where))
        return self


class GramAccumulator:
    """Gram matrix of a stream of token blocks, in the float64 memory of its lower triangle (half a matrix).

    float64 inputs are multiplied in float64. Others are multiplied as float32 (never TF32) over 256 tokens, eight such products
    are added in float32, and these sums in float64: an entry's relative error is that of a float32 sum of 512 terms, however
    many tokens there are. Tokens are collected until there are eight times 256, so the result depends on the tokens and not on
    how they came in blocks. Beside the triangle, memory is 2048 + 2 x 512 times the channels of float32.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self._channels = channels
        self._device = device
        # Panel i holds rows 512 i to 512 (i + 1), and the columns up to its last row.
        self._panels = [
            torch.zeros(min(ROWS, channels - start), min(start + ROWS, channels), dtype=torch.float64, device=device)
            for start in range(0, channels, ROWS)
        ]
        self._pending: Tensor | None = None  # [PRODUCTS * TOKENS, channels]
        self._num_pending = 0
        self._count = 0
        self._dtype = torch.float32
        self._finished = False

    def update(self, x: Float[Tensor, "*token channel"]) -> None:
        assert not self._finished, "tokens after the result was taken"
        assert x.shape[-1] == self._channels, f"{x.shape[-1]} channels, expected {self._channels}"
        rows = x.reshape(-1, x.shape[-1])
        dtype = x.dtype if x.dtype in (torch.float64, torch.bfloat16) else torch.float32
        if self._pending is None or self._pending.dtype != dtype:
            self._flush()
            self._pending = torch.empty(PRODUCTS * TOKENS, self._channels, dtype=dtype, device=self._device)
        self._dtype = torch.promote_types(self._dtype, dtype)
        room = len(self._pending)
        for taken in rows.tensor_split(tuple(range(room - self._num_pending, len(rows), room))):
            self._pending[self._num_pending : self._num_pending + len(taken)] = taken
            self._num_pending += len(taken)
            if self._num_pending == room:
                self._flush()

    def _flush(self) -> None:
        if self._pending is None or not self._num_pending:
            return
        of_bf16 = self._pending.dtype == torch.bfloat16
        x = self._pending[: self._num_pending].to(torch.promote_types(self._pending.dtype, torch.float32))
        self._count += len(x)
        self._num_pending = 0
        blocks = x.split(TOKENS)
        # Two for all panels, as fresh memory is slow.
        total, product = (x.new_empty(min(ROWS, self._channels) * self._channels) for _ in range(2))
        with full_float32(of_bf16=of_bf16):
            for panel in self._panels:
                stop = panel.shape[1]
                one, more = (buffer[: panel.numel()].view_as(panel) for buffer in (total, product))
                for number, block in enumerate(blocks):
                    torch.mm(block[:, stop - len(panel) : stop].mT, block[:, :stop], out=more if number else one)
                    if number:
                        one += more
                panel += one

    def result(self) -> Gram:
        """The symmetric matrix. The triangle is freed as it is copied, so the accumulator is finished."""
        assert not self._finished, "the result can be taken once"
        self._flush()
        self._finished = True
        self._pending = None
        matrix = torch.empty(self._channels, self._channels, dtype=self._dtype, device=self._device)
        self._panels.reverse()
        while self._panels:
            panel = self._panels.pop()
            stop = panel.shape[1]
            matrix[stop - len(panel) : stop, :stop] = panel
        mirror_lower(matrix)
        return Gram(self._count, matrix)


def typical(diagonal: Float[Tensor, " column"]) -> Float[Tensor, ""]:
    """What a ridge is a fraction of: the mean of a Gram matrix's diagonal, but at most `MASSIVE` times the median of its live part.

    A few massive channels, which large models have, would otherwise make a ridge that silences every ordinary one, and the same
    function with other scales inside would be pruned otherwise.
    """
    mean = diagonal.mean()
    live = diagonal[diagonal > DEAD * mean]
    return torch.minimum(mean, MASSIVE * live.median()) if len(live) else mean


def mirror_lower(matrix: Float[Tensor, "n n"]) -> None:
    """Make a matrix symmetric in place by writing its lower triangle over the upper one."""
    for start in range(0, len(matrix), ROWS):
        stop = start + ROWS
        matrix[:start, start:stop] = matrix[start:stop, :start].mT
        block = matrix[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(-1).mT)
