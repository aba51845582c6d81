"""The walk back: exact gradients in the memory of one layer.

    h_l = f_l(h_{l-1})    recomputed from the boundary that the walk forward kept
    dL/dh_{l-1} = (df_l/dh_{l-1})^T dL/dh_l

From the last layer to the first, one layer is reloaded, run again with autograd for each micro-batch, and the gradient of its
output carried to its input. Weights take part as constants: what is wanted of a gradient with respect to a weight is formed by an
observer from the module's input and its output's gradient, and never for more than one layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.streaming.boundaries import Boundaries
from secateur.streaming.finite import finite
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.loss import of_live_tokens
from secateur.streaming.source import read_layer, to_device
from secateur.streaming.template import run_layer
from secateur.streaming.walk import Walk

# Called with a tensor [block, token, channel] and a gradient [block, token, channel].
GradientObserver = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Who looks at a layer's modules on the way back, by module path."""

    inputs: Mapping[str, Sequence[GradientObserver]] = field(default_factory=dict)
    """Called with a module's input and the gradient of the loss with respect to it; no other module may read that input."""
    outputs: Mapping[str, Sequence[GradientObserver]] = field(default_factory=dict)
    """Called with a module's input and the gradient of the loss with respect to its *output*."""


def walk_back(
    walk: Walk, boundaries: Boundaries, gradient: HiddenStates, tap: Callable[[int, Mapping[str, Tensor]], Taps], *, first: int
) -> Iterator[int]:
    """Run layers `first`, `first` - 1, ..., 0; yields each number when the gradient before it is complete in `gradient`.

    `gradient` holds the gradient of the loss with respect to the output of layer `first`. `tap(layer, weights)` says who looks at
    it. The walk's `start` must have run. Raises `UserError` where a gradient is NaN or infinite.
    """
    read: dict[str, Tensor] = {}
    for number in range(first, -1, -1):
        read = read_layer(walk.source, number, over=read)
        weights = to_device(read, walk.device, walk.dtype)
        _run_back(walk, number, weights, boundaries, gradient, tap(number, weights))
        boundaries.drop(number + 1)
        gradient.commit(number)
        del weights
        yield number


def _run_back(
    walk: Walk, number: int, weights: Mapping[str, Tensor], boundaries: Boundaries, gradient: HiddenStates, taps: Taps
) -> None:
    module = walk.module(number)
    for a, b in walk.batches(gradient.shape):
        before = boundaries.get(number, a, b).to(walk.device).detach().requires_grad_()
        with ExitStack() as hooks, torch.enable_grad():
            for path in {*taps.inputs, *taps.outputs}:
                hooks.enter_context(_tapped(module.get_submodule(path), taps, path, b - a))
            out = run_layer(walk.binding, module, weights, before, walk.call(number, b - a))
            out.backward(gradient.get(a, b).to(walk.device))
        assert before.grad is not None
        if not finite(before.grad):
            raise UserError(
                f"the gradient of the loss before layer {number} is NaN or infinite: it overflows in {walk.dtype}. Compute in a "
                f"wider type: --dtype fp32 (or bf16 instead of fp16)."
            )
        gradient.put(a, of_live_tokens(before.grad, before))


class _tapped:
    """Calls the observers of a module whose forward runs while the context lasts."""

    def __init__(self, module: nn.Module, taps: Taps, path: str, blocks: int) -> None:
        self.module, self.blocks = module, blocks
        self.inputs, self.outputs = taps.inputs.get(path, ()), taps.outputs.get(path, ())

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self._attach)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _attach(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        x = args[0]
        seen = x.detach()  # a hook that held x itself would keep it alive for ever
        if self.inputs:
            x.register_hook(lambda gradient: self._tell(self.inputs, seen, gradient))
        if self.outputs:
            out.register_hook(lambda gradient: self._tell(self.outputs, seen, gradient))

    def _tell(self, observers: Sequence[GradientObserver], x: Tensor, gradient: Tensor) -> None:
        # OPT's MLP runs on [block x token, channel].
        x, gradient = (t.detach().reshape(self.blocks, -1, t.shape[-1]) for t in (x, gradient))
        with torch.no_grad():
            for observer in observers:
                observer(x, gradient)


def forward_for_back(walk: Walk, ids: Tensor, hidden: HiddenStates, boundaries: Boundaries, *, layers: int) -> Iterator[int]:
    """Walk forward through the first `layers` layers and keep every boundary; yields the number of each."""
    walk.start(ids, hidden)
    boundaries.keep(0, hidden)
    if not layers:
        return
    for number in walk.layers(hidden):
        boundaries.keep(number + 1, hidden)
        yield number
        if number + 1 == layers:
            return
