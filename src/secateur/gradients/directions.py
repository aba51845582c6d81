"""Random directions that are never kept: any part of any of them is made again, alone, from its place and the seed.

All are drawn on the CPU, so that a seed means the same directions whatever device computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 16
"""Rows of a matrix that share one generator."""

# (query, layer, module, rows, columns) -> those rows, outputs first, of the query's direction in a module's matrix; on the CPU.
Direction = Callable[[int, int, str, slice, int], Float[Tensor, "row column"]]
# (slots, layer) -> +1 or -1 for every gate of the layer. A slot is one example in one round: example * rounds + round.
Design = Callable[[Int[Tensor, " slot"], int], Float[Tensor, "slot gate"]]


def generator(*key: object) -> torch.Generator:
    """A generator whose stream depends on the key alone."""
    digest = sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """z ~ N(0, I) in the space of the weights, float32: the same numbers for weights of any type."""

    seed: int

    def __call__(self, query: int, layer: int, module: str, rows: slice, columns: int) -> Float[Tensor, "row column"]:
        first, stop = rows.start // ROWS, -(-rows.stop // ROWS)
        z = torch.empty((stop - first) * ROWS, columns)
        for block, part in enumerate(z.split(ROWS), first):
            part.normal_(generator=generator("z", self.seed, query, layer, module, block))
        return z[rows.start - first * ROWS : rows.stop - first * ROWS]


def ones(query: int, layer: int, module: str, rows: slice, columns: int) -> Float[Tensor, "row column"]:
    """The one direction of the constant gradient; float64, so that nothing of its sums is lost."""
    return torch.ones(rows.stop - rows.start, columns, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Independent Rademacher signs."""

    seed: int
    gates: int
    """Of one layer."""

    def __call__(self, slots: Int[Tensor, " slot"], layer: int) -> Float[Tensor, "slot gate"]:
        draws = [generator("plain", self.seed, layer, slot) for slot in slots.tolist()]
        return 1 - 2 * torch.stack([torch.randint(2, (self.gates,), generator=draw) for draw in draws]).float()


@dataclass(frozen=True, kw_only=True)
class Hadamard:
    """Rows of a Hadamard matrix, which slots take in turn; every gate of the model is one of its columns, with a random sign.

    The gates of all layers take the columns in turn, each layer's in a random order of its own. With an `order` of at least the
    number of gates all directions of `order` consecutive slots are orthogonal; with one of at least a layer's gates they are
    within each layer. The matrix is Sylvester's: entry (i, j) is (-1)^popcount(i & j), and it is never built.
    """

    seed: int
    gates: int
    """Of one layer."""
    order: int
    """A power of two."""

    def __call__(self, slots: Int[Tensor, " slot"], layer: int) -> Float[Tensor, "slot gate"]:
        draw = generator("hadamard", self.seed, layer)
        columns = (layer * self.gates + torch.randperm(self.gates, generator=draw)) % self.order
        signs = torch.randint(2, (self.gates,), generator=draw)
        odd = parity((slots % self.order)[:, None] & columns) ^ signs
        return 1 - 2 * odd.float()


def parity(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The number of ones in the binary form of non-negative 64-bit integers, modulo 2."""
    for shift in (32, 16, 8, 4, 2, 1):
        x = x ^ (x >> shift)
    return x & 1
