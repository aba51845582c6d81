"""SPSA in the space of unit gates: antithetic, with a direction for every example, and orthogonal designs. This is ours.

    m = 1 +- eps d,  d in {-1, +1};   rho = (L(1 + eps d) - L(1 - eps d)) / (2 eps);   t = mean over rounds of rho d

A model has far fewer gates than weights, and the variance of such an estimate grows with their number; orthogonal directions take
away what one gate's estimate catches of another's. Each example of a batch has gates of its own, so a forward pass of B examples
tries B directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.families.binding import Binding
from secateur.gradients.branches import Branches, Change, Layer, sides, two_sided, walk_branches
from secateur.gradients.directions import Design
from secateur.gradients.estimator import Task
from secateur.gradients.gate_space import GateSpace, estimate_gates
from secateur.gradients.sampling import (
    SAMPLED,
    check_count,
    check_design,
    check_step,
    design_of,
)
from secateur.streaming.collect import Request, Seen


@dataclass(frozen=True, kw_only=True)
class SpsaGates:
    """Gates of all layers are perturbed at once. Gradients of weights are lifted from those of gates, see `lifting`."""

    name: ClassVar = "spsa-gates"
    paper: ClassVar = ""
    kinds: ClassVar[frozenset[str]] = SAMPLED
    seeded: ClassVar = True
    n: int = 16
    """Rounds: directions for each example. Each costs two forward passes."""
    eps: float = 2**-5
    design: str = "hadamard"
    """`hadamard` or `plain`, which draws every sign alone."""
    order: int | None = None
    """Of the Hadamard design, a power of two; by default the largest that samples x rounds fill."""

    def __post_init__(self) -> None:
        check_count(self.name, self.n)
        check_step(self.name, self.eps)
        check_design(self.name, self.design, self.order)

    def passes(self) -> tuple[int, int]:
        return 2 * self.n + 1, 0

    def states(self, binding: Binding, request: Request) -> int:
        return 2 * self.n + 1

    def estimate(self, task: Task) -> Iterator[int]:
        """Resumes within the pass over the branches and within the reduction, bit for bit."""
        space, slots = GateSpace.of(task.binding, task.axes), len(task.ids) * self.n
        design = design_of(self.design, self.order, seed=task.seed, gates=space.num_gates, slots=slots)
        yield from estimate_gates(task, space, design, self._measure)

    def _measure(self, task: Task, watched: Request, space: GateSpace, design: Design) -> Iterator[int]:
        """Save rho[sample, round], and the moments of the readers' inputs."""
        wide = torch.float64 if task.walk.dtype == torch.float64 else torch.float32

        def run(layer: Layer, branches: Branches) -> Seen:
            seen = branches.run_clean(layer, watched)
            for branch, turn, step in sides(self.n, self.eps):

                def changes(a: int, b: int, turn: int = turn, step: float = step) -> dict[str, Change]:
                    signs = design(torch.arange(a, b) * self.n + turn, layer.number)
                    return space.changes(1 + step * signs.to(task.walk.device, wide))

                branches.run(layer, branch, changes)
            return seen

        yield from walk_branches(task, 2 * self.n + 1, watched, run, lambda branches: two_sided(branches, self.eps))
