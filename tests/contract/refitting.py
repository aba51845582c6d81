"""A refitting walk over a tiny model, as the tests of it start and end one."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import Kept
from secateur.plan import Plan
from secateur.streaming.module import ModuleSource
from secateur.streaming.source import Source
from secateur.streaming.walk import Walk
from secateur.surgery.refit import Refit, Rewritten
from secateur.surgery.sequential import Sequential
from tests.contract.masking import Float64, draw_kept
from tests.contract.tiny import tiny_tokens

CPU = torch.device("cpu")
F64 = torch.float64
DEEPER = {
    "gpt2": {"n_layer": 4},
    "gemma2": {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
IDS = tiny_tokens(9, 12)  # two of nine blocks are held out; 108 tokens for at most 64 columns


def kept_of(model: nn.Module, seed: str) -> tuple[Kept, ...]:
    source, rng = ModuleSource.of(model), random.Random(seed)
    return tuple(draw_kept(source.binding.sizes, source.binding.prunable, rng) for _ in range(source.binding.num_layers))


def plan_of(source: Source, layers: Sequence[Kept]) -> Plan:
    return Plan(model_type=source.binding.model_type, fingerprint="", sizes=dict(source.binding.sizes), layers=tuple(layers))


def task(
    source: Source, layers: Sequence[Kept], directory: Path, *, tokens: int = 10_000, ids: Tensor = IDS, dtype: torch.dtype = F64,
    ridge: float = -1.0, matrices: str = "all", **options: Any,
) -> Refit:  # fmt: skip
    directory.mkdir(exist_ok=True)
    return Refit(
        walk=Walk.over(source, device=CPU, dtype=dtype, tokens=tokens), ids=ids, plan=plan_of(source, layers),
        how=Sequential(ridge=ridge, matrices=matrices), rewritten=Rewritten(directory=directory), **options,
    )  # fmt: skip


def done(refit: Refit) -> Rewritten:
    with Float64():
        assert list(refit.run()) == [*range(refit.walk.binding.num_layers)]
    assert {p.name for p in refit.rewritten.directory.iterdir()} == {
        refit.rewritten.path(i).name for i in range(refit.walk.binding.num_layers)
    }, "boundaries of a finished walk are thrown away"
    return refit.rewritten


def weights_of(rewritten: Rewritten, layers: int = 2) -> dict[tuple[int, str], Tensor]:
    return {(layer, name): x for layer in range(layers) for name, x in rewritten.load(layer).items()}


def near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())
