"""A copy of a model with rounded widths: what `--round-to` would give, for its times alone."""

import copy
from typing import Any

import pytest
import torch

from secateur.families.binding import bind
from secateur.recipes import rounding
from tests.contract.tiny import VARIANTS, tiny_model, tiny_tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_runs_at_other_widths(variant: str) -> None:
    model_type, changes = VARIANTS[variant]
    model: Any = tiny_model(model_type, **changes)
    binding = bind(model.config)
    before = copy.deepcopy(model.state_dict())
    widths = [{**binding.sizes, "ffn": 8 * (1 + i)} for i in range(binding.num_layers)]
    made = rounding.round_to(model, binding, widths)
    assert torch.isfinite(made(tiny_tokens()).logits).all()
    stack: Any = made.get_submodule(binding.family.layers)
    for layer, sizes in zip(stack, widths, strict=True):
        for name in binding.readers("ffn"):
            assert sizes["ffn"] in layer.get_parameter(name).shape
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
