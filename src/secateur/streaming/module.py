"""Weights of a model that is already in memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from secateur.axes import Kept
from secateur.families.binding import Binding, bind


@dataclass(frozen=True, kw_only=True)
class ModuleSource:
    """A user's own Hugging Face model; its weights are read, never changed."""

    model: nn.Module
    binding: Binding

    @classmethod
    def of(cls, model: nn.Module) -> "ModuleSource":
        config = model.config
        return cls(model=model, binding=bind(config, dtype=next(model.parameters()).dtype))

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
