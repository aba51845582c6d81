"""SPSA in the space of the weights: MINI-LLM's gradient, as we read it.      https://arxiv.org/abs/2407.11681

    z ~ N(0, I);   rho = (L(W + eps z) - L(W - eps z)) / (2 eps);   g = rho z

z is never kept: a seed for every few rows of every matrix makes it again. All branches (one as it is, two for each query) go through
one pass over the layers, on perturbed copies of one layer at a time, so the weights themselves are never written to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.families.binding import Binding
from secateur.gradients.branches import Branches, Layer, sides, two_sided, walk_branches
from secateur.gradients.directions import Direction, Gaussian
from secateur.gradients.estimator import Task, oriented
from secateur.gradients.sampling import (
    SAMPLED,
    check_count,
    check_step,
    coupled_modules,
    finished,
    load_slopes,
    measured,
)
from secateur.gradients.weight_space import reduce_layers
from secateur.statistics.weight_gradient import row_blocks
from secateur.streaming.collect import Request, Seen


@dataclass(frozen=True, kw_only=True)
class SpsaWeights:
    """Perturbs the matrices that units of the pruned axes are part of, all layers at once.

    A 16-bit type rounds W + eps z: at eps = 1e-3 and weights near 0.02 a bf16 perturbation is off by about an eighth.
    """

    name: ClassVar = "spsa-weights"
    paper: ClassVar = "https://arxiv.org/abs/2407.11681"
    kinds: ClassVar[frozenset[str]] = SAMPLED
    seeded: ClassVar = True
    n: int = 1
    """Queries: directions z. Each costs two forward passes."""
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_count(self.name, self.n)
        check_step(self.name, self.eps)

    def passes(self) -> tuple[int, int]:
        return 2 * self.n + 1, 0

    def states(self, binding: Binding, request: Request) -> int:
        return 2 * self.n + 1

    def estimate(self, task: Task) -> Iterator[int]:
        """Resumes within the pass over the branches and within the reduction, bit for bit."""
        if not finished(task):
            watched = Request.of(task.binding, task.axes, {"moments"}, "coupled")
            if not measured(task, watched):
                yield from self._measure(task, watched)
            yield from reduce_layers(task, load_slopes(task), Gaussian(seed=task.seed))
        task.store.sweep()

    def _measure(self, task: Task, watched: Request) -> Iterator[int]:
        """Save rho[sample, query], and the moments of every perturbed matrix's input."""
        direction, modules, copies = Gaussian(seed=task.seed), coupled_modules(task.binding, task.axes), dict[str, Tensor]()

        def run(layer: Layer, branches: Branches) -> Seen:
            seen = branches.run_clean(layer, watched)
            for branch, query, step in sides(self.n, self.eps):
                perturb(layer, modules, direction, query, step, over=copies)
                branches.run(layer, branch, weights={**layer.weights, **copies})
            return seen

        def end(branches: Branches) -> Float[Tensor, "sample query"]:
            copies.clear()
            return two_sided(branches, self.eps)

        yield from walk_branches(task, 2 * self.n + 1, watched, run, end)


def perturb(
    layer: Layer, modules: list[str], direction: Direction, query: int, step: float, *, over: dict[str, Tensor]
) -> None:
    """Fill `over` with W + step z for the matrices of these modules, rounded to their type; its memory is used again."""
    for module in modules:
        name = f"{module}.weight"
        weight = layer.weights[name]
        if name not in over or over[name].shape != weight.shape:
            over[name] = torch.empty_like(weight)
        source, out = (oriented(layer.walk.binding, module, w) for w in (weight, over[name]))
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        for rows in row_blocks(source):
            z = direction(query, layer.number, module, rows, source.shape[1]).to(weight.device)
            out[rows] = torch.add(source[rows].to(wide), z, alpha=step)
