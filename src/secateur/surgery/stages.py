"""A layer's matrices in the order in which its forward comes to them, and a look at what goes in and out of some of them.

Matrices that read the same input make one *stage*. A *reader* takes a prunable axis in; where its output is added to the stream
of hidden states and nothing more happens to it, it can also make up for what the stream has lost before it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur import axes
from secateur.families.binding import Binding

ADDED = 0.05
"""A reader's output is added to the stream if a signal in its place comes out this nearly as it went in (relative error)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Modules that read one input."""

    modules: tuple[str, ...]
    reader: bool
    biased: bool
    """All of them have a bias, or none has."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one run of a layer, each [block, token, channel]."""

    input: Tensor
    outputs: Mapping[str, Tensor]
    stream: Tensor | None
    """The layer's output with the stage's own output and that of all later readers taken for zero; None unless the stage reads."""


# Runs the layer on some micro-batch: the output.
Run = Callable[[], Tensor]


class _Enough(Exception):
    """Ends a run when the last module of a stage has spoken."""


def readers(binding: Binding) -> frozenset[str]:
    """Modules of a layer that read a prunable axis."""
    found = {name for axis in binding.prunable for name in binding.readers(axis)}
    return frozenset(name.rpartition(".")[0] for name in found)


def stages(binding: Binding, module: nn.Module, run: Run) -> tuple[Stage, ...]:
    """The stages of a layer, in the order of its forward."""
    matrices = [n.rpartition(".")[0] for n, s in binding.layer.items() if len(s.dims) == 2 and s.inputs]
    order: list[tuple[str, Tensor]] = []
    with _hooked(module, {m: lambda x, y, m=m: order.append((m, x)) for m in matrices}):
        run()
    grouped: list[tuple[Tensor, bool, list[str]]] = []
    for name, x in order:
        biased = f"{name}.bias" in binding.layer
        for known, has, names in grouped:
            if known is x and has == biased:
                names.append(name)
                break
        else:
            grouped.append((x, biased, [name]))
    reading = readers(binding)
    return tuple(Stage(modules=tuple(names), reader=names[0] in reading, biased=biased) for _, biased, names in grouped)


def look(module: nn.Module, run: Run, stage: Stage, later: Iterable[str] = ()) -> Look:
    """Run a layer and see a stage. `later`: the readers after it, which say nothing."""
    inputs: list[Tensor] = []
    outputs: dict[str, Tensor] = {}

    def see(name: str) -> Callable[[Tensor, Tensor], Tensor | None]:
        def hook(x: Tensor, y: Tensor) -> Tensor | None:
            inputs.append(x)
            outputs[name] = y
            if stage.reader:
                return torch.zeros_like(y)
            if len(outputs) == len(stage.modules):
                raise _Enough
            return None

        return hook

    hooks = {name: see(name) for name in stage.modules} | dict.fromkeys(later, _silent)
    stream = None
    with _hooked(module, hooks), suppress(_Enough):
        stream = run()
    return Look(input=inputs[0], outputs=outputs, stream=stream)


def added(module: nn.Module, run: Run, stage: Stage, later: Iterable[str]) -> bool:
    """Whether a reader's output goes into the stream as it is, with no norm between: found by putting a signal in its place.

    The signal is the stream itself, moved by one channel and twice as large at every second token: a norm would even that out.
    """
    later = tuple(later)
    base = look(module, run, stage, later).stream
    assert base is not None
    signal = base.roll(1, -1).clone()
    signal[:, ::2] *= 2
    hooks: dict[str, Hook] = dict.fromkeys(later, _silent)
    with _hooked(module, hooks | {stage.modules[0]: lambda x, y: signal.to(y.dtype).view_as(y)}):
        out = run()
    return float((out - base - signal).float().norm()) <= ADDED * float(signal.float().norm())


# (input, output) of a module -> what it says instead, or None.
Hook = Callable[[Tensor, Tensor], Tensor | None]


def _silent(x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


@contextmanager
def _hooked(module: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    handles = [
        module.get_submodule(name).register_forward_hook(lambda _, args, out, hook=hook: hook(args[0], out))
        for name, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kept_rows(binding: Binding, name: str, kept: axes.Kept) -> Tensor | None:
    """Outputs of a matrix that stay; None: all."""
    spec = binding.layer[f"{name}.weight"]
    return axes.dim_index(spec.dims[1 - min(spec.inputs)], binding.sizes, kept)


def later_readers(order: Sequence[Stage], at: int) -> tuple[str, ...]:
    return tuple(name for stage in order[at + 1 :] if stage.reader for name in stage.modules)
