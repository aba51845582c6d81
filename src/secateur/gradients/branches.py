"""One pass over the layers with several branches of the calibration blocks side by side.

Branch k holds the blocks k N to (k + 1) N of the hidden states: the same texts, run with other weights, or with other inputs of
some modules. Each layer's weights are read once, for all branches.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.gradients.estimator import Task
from secateur.gradients.sampling import boundary_name, save_slopes, slopes
from secateur.statistics.moments import MomentsAccumulator
from secateur.streaming.collect import Request, Seen
from secateur.streaming.finite import blame, finite
from secateur.streaming.hidden import HiddenStates, boundary, intact
from secateur.streaming.loss import block_losses
from secateur.streaming.memory import SHARE, free
from secateur.streaming.source import read_layer, to_device
from secateur.streaming.template import run_layer
from secateur.streaming.walk import Walk

# The input [block, token, channel] of a module -> what it reads in its place.
Change = Callable[[Float[Tensor, "block token channel"]], Float[Tensor, "block token channel"]]
# (first block, last) of a branch -> the changes for these blocks, by module path.
Changes = Callable[[int, int], Mapping[str, Change]]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer while it runs; its weights are not to be written to."""

    walk: Walk
    number: int
    module: nn.Module
    weights: Mapping[str, Tensor]

    def __call__(self, x: Tensor, changes: Mapping[str, Change], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The output for a micro-batch [block, token, hidden]."""
        with changed(self.module, changes, len(x)):
            call = self.walk.call(self.number, len(x))
            return run_layer(self.walk.binding, self.module, self.weights if weights is None else weights, x, call)


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The hidden states of all branches of a task."""

    task: Task
    hidden: HiddenStates

    @property
    def blocks(self) -> int:
        """Of one branch."""
        return len(self.task.ids)

    @torch.no_grad()
    def run(
        self, layer: Layer, branch: int, changes: Changes = lambda a, b: {}, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Run one branch through a layer; `weights` replace the layer's own. Raises `UserError` at NaN and infinity."""
        for a, b in layer.walk.batches(self.task.ids.shape):
            out = layer(self.get(branch, a, b), changes(a, b), weights)
            if not finite(out):
                raise blame(layer.walk.source, layer.number) if branch == 0 else _overflow(layer)
            self.put(branch, a, out)

    def run_clean(self, layer: Layer, watched: Request) -> Seen:
        """Run branch 0 with nothing changed, and see the moments of the watched modules' inputs."""
        accumulators = {
            m: MomentsAccumulator(watched.channels(layer.walk.binding, m), layer.walk.device) for m in watched.kinds
        }
        observers = {m: _observer(a) for m, a in accumulators.items()}
        self.run(layer, 0, lambda a, b: observers)
        return {
            m: {"moments": a.result().require_finite(f"layer {layer.number}, the input of {m}")}
            for m, a in accumulators.items()
        }

    def get(self, branch: int, start: int, stop: int) -> Float[Tensor, "block token hidden"]:
        at = branch * self.blocks
        return self.hidden.get(at + start, at + stop).to(self.task.walk.device)

    def put(self, branch: int, start: int, x: Float[Tensor, "block token hidden"]) -> None:
        self.hidden.put(branch * self.blocks + start, x)


def walk_branches(
    task: Task,
    number: int,
    watched: Request,
    run: Callable[[Layer, Branches], Seen],
    end: Callable[[Branches], Float[Tensor, "sample query"]],
    *,
    tangents: bool = False,
) -> Iterator[int]:
    """Take `number` branches through all layers and save the slopes that `end` finds in what comes out; yields each layer's number.

    The branches' hidden states are spilled where the task says so, or where they would take much of the free memory.
    `run(layer, branches)` runs a layer for all branches and returns the moments of the watched modules' inputs, which are stored.
    With `task.resume` the walk goes on from the newest hidden states that an interrupted one left. `tangents`: all branches but
    the first start at zero.
    """
    walk, ids = task.walk, task.ids
    shape = (number * len(ids), ids.shape[1], task.binding.sizes["hidden"])
    spill = task.spill or torch.Size(shape).numel() * walk.dtype.itemsize > free() // SHARE
    first = newest(task, watched) if task.resume else 0
    if not first:
        task.store.sweep()
    with HiddenStates(shape, walk.dtype, directory=task.store.directory, spill=spill, name=boundary_name(task)) as hidden:
        branches = Branches(task=task, hidden=hidden)
        if first:
            hidden.restore(first)
            walk.start(ids, None)
        else:
            _embed(branches, number, tangents)
        yield from _layers(branches, first, run)
        save_slopes(task, end(branches))
        hidden.forget(task.binding.num_layers)


def _layers(branches: Branches, first: int, run: Callable[[Layer, Branches], Seen]) -> Iterator[int]:
    task, walk, read = branches.task, branches.task.walk, {}
    for number in range(first, task.binding.num_layers):
        read = read_layer(walk.source, number, over=read)
        weights = to_device(read, walk.device, walk.dtype)
        task.store.save(number, run(Layer(walk=walk, number=number, module=walk.module(number), weights=weights), branches))
        del weights
        branches.hidden.commit(number + 1)
        branches.hidden.forget(number)
        yield number


def newest(task: Task, watched: Request) -> int:
    """The layer that an interrupted walk can go on with; 0 if it left nothing that is whole."""
    for layer in range(task.binding.num_layers, 0, -1):
        path = boundary(task.store.directory, layer, boundary_name(task))
        if intact(path) and task.store.finished(layer, watched) == layer:
            return layer
    return 0


def _embed(branches: Branches, number: int, tangents: bool) -> None:
    task, hidden = branches.task, branches.hidden
    embedded = HiddenStates((*task.ids.shape, hidden.shape[2]), hidden.dtype)  # type: ignore[arg-type]
    task.walk.start(task.ids, embedded)
    for branch in range(number):
        for a, b in task.walk.batches(task.ids.shape):
            x = embedded.get(a, b)
            branches.put(branch, a, torch.zeros_like(x) if tangents and branch else x)
    hidden.commit(0)


def two_sided(branches: Branches, eps: float) -> Float[Tensor, "sample query"]:
    """Slopes from the losses of the branches: the plain one, then each query's at +eps and at -eps."""
    number = branches.hidden.shape[0] // branches.blocks
    losses = block_losses(branches.task.walk, branches.task.ids.repeat(number, 1), branches.hidden.get).view(number, -1)
    return slopes(losses[1::2], losses[2::2], eps).mT.contiguous()


def sides(n: int, eps: float) -> Iterator[tuple[int, int, float]]:
    """(branch, query, step) of all branches but the plain one, in the order of `two_sided`."""
    for query in range(n):
        yield 2 * query + 1, query, eps
        yield 2 * query + 2, query, -eps


@contextmanager
def changed(module: nn.Module, changes: Mapping[str, Change], blocks: int) -> Iterator[None]:
    """Inside, modules read what `changes` make of their input."""
    with ExitStack() as hooks:
        for path, change in changes.items():
            hooks.callback(module.get_submodule(path).register_forward_pre_hook(_hook(change, blocks)).remove)
        yield


def _hook(change: Change, blocks: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def read(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]  # OPT's MLP runs on [block x token, channel]
        return (change(x.reshape(blocks, -1, x.shape[-1])).reshape(x.shape), *args[1:])

    return read


def _observer(accumulator: MomentsAccumulator) -> Change:
    def see(x: Tensor) -> Tensor:
        accumulator.update(x)
        return x

    return see


def _overflow(layer: Layer) -> UserError:
    return UserError(
        f"layer {layer.number} gives NaN or infinity where it is perturbed, and not where it is not. Choose a smaller eps, or "
        f"compute in a wider type: --dtype fp32 (or bf16 instead of fp16)."
    )
