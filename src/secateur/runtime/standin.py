"""What stands in for a model whose layers it changed: calls and attributes are the model's, what would lose the change is refused."""

from typing import Any, NoReturn

import torch
from torch import nn

from secateur.errors import UserError


class Standin:
    """Has the model as `model`."""

    model: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def eval(self) -> Any:
        """The model is in evaluation mode already."""
        return self

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise UserError(
                "train() was called, and this model is for inference. Train what `dense()` gives back, or `plain()` of a smaller model."
            )
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing, where the model is there and of that type; it cannot be moved."""
        moved = nn.Module.to(torch.nn.Linear(1, 1, device=self.model.device, dtype=self.model.dtype), *args, **kwargs)
        if (moved.weight.device, moved.weight.dtype) != (self.model.device, self.model.dtype):
            raise UserError(
                f"to() was called with {moved.weight.dtype} on {moved.weight.device}, and this model is {self.model.dtype} on "
                f"{self.model.device}. Its layers share weights that would not follow: load the model so, and probe that."
            )
        return self

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise UserError(
            "a copy of this model would run its layers without what was put into them. Load the model again and probe that; a "
            "state can be copied, saved and shared."
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UserError(
            "this model cannot be pickled. Save its state, and give it to the model when it is loaded and probed again."
        )
