"""Control: the gradient of `spsa-weights` with random numbers for the slopes. It knows everything but the loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.families.binding import Binding
from secateur.gradients.directions import Gaussian, generator
from secateur.gradients.estimator import Task
from secateur.gradients.sampling import SAMPLED, check_count
from secateur.gradients.weight_space import reduce_after_clean_pass
from secateur.streaming.collect import Request


@dataclass(frozen=True, kw_only=True)
class Random:
    """rho[n, k] ~ N(0, 1), drawn from the seed. One forward pass, for the activations."""

    name: ClassVar = "random"
    paper: ClassVar = ""
    kinds: ClassVar[frozenset[str]] = SAMPLED
    seeded: ClassVar = True
    n: int = 1
    """Queries: directions z, those of `spsa-weights` for the same seed."""

    def __post_init__(self) -> None:
        check_count(self.name, self.n)

    def passes(self) -> tuple[int, int]:
        return 1, 0

    def states(self, binding: Binding, request: Request) -> int:
        return 1

    def estimate(self, task: Task) -> Iterator[int]:
        rho = self.slopes(len(task.ids), task.seed)
        yield from reduce_after_clean_pass(task, rho, Gaussian(seed=task.seed))

    def slopes(self, samples: int, seed: int) -> Float[Tensor, "sample query"]:
        return torch.randn(samples, self.n, generator=generator("random", seed), dtype=torch.float64)
