"""Forward-mode gradients of unit gates: the slopes of `spsa-gates`, exact. This is ours.

    rho = <t, d>, by dual numbers: the hidden state and its tangent go through the layers together;   t = mean over rounds of rho d

No step has to be chosen and nothing cancels; what remains is that there are fewer directions than gates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.families.binding import Binding
from secateur.gradients.branches import Branches, Layer, walk_branches
from secateur.gradients.directions import Design
from secateur.gradients.estimator import Task
from secateur.gradients.gate_space import GateSpace, estimate_gates
from secateur.gradients.sampling import SAMPLED, check_count, check_design, design_of
from secateur.streaming.collect import Request, Seen
from secateur.streaming.loss import TOKENS, token_losses


@dataclass(frozen=True, kw_only=True)
class ForwardMode:
    """Gradients of weights are lifted from those of gates, see `lifting`."""

    name: ClassVar = "forward-mode"
    paper: ClassVar = ""
    kinds: ClassVar[frozenset[str]] = SAMPLED
    seeded: ClassVar = True
    n: int = 16
    """Rounds: directions for each example."""
    design: str = "hadamard"
    """`hadamard` or `plain`, which draws every sign alone."""
    order: int | None = None
    """Of the Hadamard design, a power of two; by default the largest that samples x rounds fill."""

    def __post_init__(self) -> None:
        check_count(self.name, self.n)
        check_design(self.name, self.design, self.order)

    def passes(self) -> tuple[int, int]:
        """A directional derivative counts as two forward passes."""
        return 2 * self.n + 1, 0

    def states(self, binding: Binding, request: Request) -> int:
        return self.n + 1

    def estimate(self, task: Task) -> Iterator[int]:
        """Resumes within the pass over the branches and within the reduction, bit for bit."""
        space, slots = GateSpace.of(task.binding, task.axes), len(task.ids) * self.n
        design = design_of(self.design, self.order, seed=task.seed, gates=space.num_gates, slots=slots)
        yield from estimate_gates(task, space, design, self._measure)

    def _measure(self, task: Task, watched: Request, space: GateSpace, design: Design) -> Iterator[int]:
        """Save rho[sample, round], and the moments of the readers' inputs. Branch 0 is the hidden state, the others tangents."""
        wide = torch.float64 if task.walk.dtype == torch.float64 else torch.float32

        def run(layer: Layer, branches: Branches) -> Seen:
            for a, b in task.walk.batches(task.ids.shape):
                for turn in range(self.n):
                    signs = design(torch.arange(a, b) * self.n + turn, layer.number).to(task.walk.device, wide)
                    x, tangent = branches.get(0, a, b), branches.get(1 + turn, a, b)
                    gated = lambda x, gates: layer(x, space.changes(gates))  # noqa: E731
                    branches.put(1 + turn, a, derivative(gated, (x, torch.ones_like(signs)), (tangent, signs)))
            return branches.run_clean(layer, watched)  # last: it replaces the hidden state that the tangents belong to

        yield from walk_branches(task, 1 + self.n, watched, run, lambda b: _head(b, self.n), tangents=True)


def _head(branches: Branches, rounds: int) -> Float[Tensor, "sample round"]:
    """Derivatives of every block's loss along its tangents."""
    task = branches.task
    rho = torch.zeros(branches.blocks, rounds, dtype=torch.float64)
    outer = task.walk.outer_after()
    step = max(1, TOKENS // task.ids.shape[1])
    for a in range(0, branches.blocks, step):
        ids = task.ids[a : a + step]
        for at in range(0, ids.shape[1] - 1, TOKENS):
            positions = torch.arange(at, min(at + TOKENS, ids.shape[1] - 1))

            def losses(hidden: Tensor, ids: Tensor = ids, positions: Tensor = positions) -> Tensor:
                logits = task.walk.template.epilogue(hidden, outer, positions.to(hidden.device))
                return token_losses(logits, ids[:, positions + 1].to(hidden.device)).double().sum(1)

            x = branches.get(0, a, a + len(ids))
            for turn in range(rounds):
                tangent = branches.get(1 + turn, a, a + len(ids))
                rho[a : a + len(ids), turn] += derivative(losses, (x,), (tangent,)).cpu()
    return rho


def derivative(function: Callable[..., Tensor], at: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    """The derivative of a function's output along a direction of its arguments.

    A layer may hold a function of its own that has a backward rule and no forward one (BLOOM's GELU has): then two backward
    passes give the same derivative, as that of <v, J^T along> with respect to v.
    """
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # the CPU's fused attention has no forward-mode rule
        try:
            return torch.func.jvp(function, tuple(at), tuple(along))[1]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return _by_two_backwards(function, at, along)


def _by_two_backwards(function: Callable[..., Tensor], at: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    with torch.enable_grad():
        arguments = [x.detach().requires_grad_() for x in at]
        out = function(*arguments)
        v = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, arguments, v, create_graph=True)
        return torch.autograd.grad(pulled, v, tuple(along))[0]
