"""Control: every element of the gradient is one. Feature map sensitivity becomes Wanda over all coupled matrices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.families.binding import Binding
from secateur.gradients.directions import ones
from secateur.gradients.estimator import Task
from secateur.gradients.sampling import SAMPLED
from secateur.gradients.weight_space import reduce_after_clean_pass
from secateur.streaming.collect import Request


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The whole calibration set counts as one sample. One forward pass, for the activations."""

    name: ClassVar = "constant"
    paper: ClassVar = ""
    kinds: ClassVar[frozenset[str]] = SAMPLED
    seeded: ClassVar = False

    def passes(self) -> tuple[int, int]:
        return 1, 0

    def states(self, binding: Binding, request: Request) -> int:
        return 1

    def estimate(self, task: Task) -> Iterator[int]:
        yield from reduce_after_clean_pass(task, torch.ones(1, 1, dtype=torch.float64), ones)
