"""Weights of a model that is already in memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from secateur import axes
from secateur.axes import Kept
from secateur.errors import UserError
from secateur.families.binding import Binding, bind


@dataclass(frozen=True, kw_only=True)
class ModuleSource:
    """A user's own Hugging Face model; its weights are read, never changed."""

    model: nn.Module
    binding: Binding

    @classmethod
    def of(cls, model: nn.Module) -> "ModuleSource":
        """Raises `UserError` for a model whose weights are not of its configuration's sizes."""
        binding = bind(model.config, dtype=next(model.parameters()).dtype)
        for name in binding.names():
            shape, expected = tuple(model.get_parameter(name).shape), axes.shape(binding.spec(name), binding.sizes)
            if shape != expected:
                raise UserError(
                    f"the model in memory has a weight {name!r} of shape {list(shape)}, and its configuration says {list(expected)}: "
                    f"its layers have unequal sizes. Give the directory it was loaded from instead."
                )
        return cls(model=model, binding=binding)

    @property
    def fingerprint(self) -> str:
        return ""

    def kept(self, layer: int) -> Kept:
        return {}

    def dtype(self, name: str) -> torch.dtype:
        return self.model.get_parameter(name).dtype

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        return self.model.get_parameter(name).detach()

    def read_rows(self, name: str, rows: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        return self.read(name)[rows.to(self.model.get_parameter(name).device)]

    def origin(self, name: str) -> str:
        return f"the weight {name!r} of the model in memory"
