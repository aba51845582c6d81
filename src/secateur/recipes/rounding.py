"""Which multiple of channels would make a smaller model faster: tried on the machine, with random weights."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from secateur import axes
from secateur.axes import Sizes
from secateur.evaluation.speed import Cell, Spread, compare_speed
from secateur.families.binding import Binding
from secateur.families.resize import resize_layer

MULTIPLES = (8, 16, 32, 64, 128, 256)


def advise(base: Any, smaller: Any, binding: Binding, layers: Sequence[Sizes], cell: Cell, phase: str, **timing: Any) -> str:
    """What `secateur prune --round-to` would make of a model that is not faster than `base` in this cell: the least of the multiples
    with which it is.

    `binding` and the sizes of `layers` are those of `smaller`; `timing` is for `compare_speed`.
    """
    tried = []
    for multiple, sizes in _roundings(layers):
        rounded = round_to(smaller, binding, sizes)
        times = compare_speed({"base": base, "rounded": rounded}, cell, **timing)
        del rounded
        speedup = times.speedup(phase, "rounded", "base")
        tried.append(multiple)
        if speedup.median > 1:
            return f"--round-to {multiple} would make it so: {_told(speedup)} with random weights of the widths {_shown(sizes)}"
    if not tried:
        return "every width is a multiple of all that --round-to could give it: the time is not in odd widths"
    return (
        f"none of --round-to {', '.join(map(str, tried))} makes it so, tried with random weights: at this shape the time is not in "
        "odd widths"
    )


def round_to(model: Any, binding: Binding, layers: Sequence[Sizes]) -> Any:
    """A copy of a model with these sizes of its layers, and random weights where they differ."""
    made = copy.deepcopy(model)
    stack: Any = made.get_submodule(binding.family.layers)
    for layer, sizes in zip(stack, layers, strict=True):
        for name, spec in binding.layer.items():
            old, shape = layer.get_parameter(name), axes.shape(spec, sizes)
            if tuple(old.shape) != shape:
                owner, _, last = name.rpartition(".")
                new = torch.randn(shape, dtype=torch.float32).mul_(0.02).to(old)
                setattr(layer.get_submodule(owner), last, nn.Parameter(new, requires_grad=False))
        resize_layer(layer, binding.family, sizes)
    return made


def _roundings(layers: Sequence[Sizes]) -> Iterator[tuple[int, list[Sizes]]]:
    """Each multiple that changes a width and that every width has room for: the nearest of its multiples."""
    seen = [sizes["ffn"] for sizes in layers]
    for multiple in MULTIPLES:
        widths = [max(round(sizes["ffn"] / multiple), 1) * multiple for sizes in layers]
        if widths not in (seen, [sizes["ffn"] for sizes in layers]) and all(multiple <= sizes["ffn"] for sizes in layers):
            seen = widths
            yield multiple, [{**sizes, "ffn": width} for sizes, width in zip(layers, widths, strict=True)]


def _told(speedup: Spread) -> str:
    return f"{speedup.median:.2f} times as fast ({speedup.low:.2f} to {speedup.high:.2f})"


def _shown(layers: Sequence[Sizes]) -> str:
    widths = [sizes["ffn"] for sizes in layers]
    return f"{widths[0]:,}" if len(set(widths)) == 1 else f"{min(widths):,} to {max(widths):,}"
