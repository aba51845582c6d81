"""One layer of a tiny model, ready to run in float64 with its own weights, mask and positions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.families.binding import Binding
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.module import ModuleSource
from secateur.streaming.source import read_layer
from secateur.streaming.template import run_layer
from secateur.streaming.walk import Walk
from tests.contract.masking import Float64


@dataclass(frozen=True, kw_only=True)
class FirstLayer:
    """`module` has no weights: `run` gives it the model's, on all blocks."""

    binding: Binding
    module: nn.Module
    hidden: Tensor
    run: Callable[[], Tensor]


def first_layer(model: nn.Module, ids: Tensor) -> FirstLayer:
    source = ModuleSource.of(model)
    walk = Walk.over(source, device=torch.device("cpu"), dtype=torch.float64, tokens=ids.numel())
    hidden = HiddenStates((*ids.shape, source.binding.sizes["hidden"]), torch.float64)
    with Float64():
        walk.start(ids, hidden)
    module, weights = walk.module(0), read_layer(source, 0)

    def run() -> Tensor:
        with Float64(), torch.no_grad():
            return run_layer(source.binding, module, weights, hidden.get(0, len(ids)), walk.call(0, len(ids)))

    return FirstLayer(binding=source.binding, module=module, hidden=hidden.get(0, len(ids)), run=run)
