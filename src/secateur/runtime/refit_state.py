"""What a refitting model knows of its layers before a batch comes: an object of its own, saved and loaded."""

from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import UserError
from secateur.runtime.probe_refit import Known

FORMAT = "secateur-refit-1"


@dataclass(kw_only=True)
class RefitState:
    """`known`: layer -> what calibration text said of its MLP. Batches never change it."""

    online: ClassVar = False
    known: dict[int, Known] = field(default_factory=dict)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file."""
        tensors = {f"{layer}.{n}": t.contiguous() for layer, known in self.known.items() for n, t in known._asdict().items()}
        save_file(tensors, fspath(path), metadata={"format": FORMAT})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RefitState":
        """Raises `UserError` for a file that is not there or is no such state."""
        if not Path(path).is_file():
            raise UserError(f"there is no file {fspath(path)}. Give one that `state.save(path)` wrote.")
        parts: dict[int, dict[str, Tensor]] = {}
        made = False
        try:
            with safe_open(fspath(path), "pt") as file:
                if made := (file.metadata() or {}).get("format") == FORMAT:
                    for name in file.keys():  # noqa: SIM118, no mapping
                        layer, _, table = name.partition(".")
                        parts.setdefault(int(layer), {})[table] = file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(
                f"{fspath(path)} is not a safetensors file ({error}). Give one that `state.save(path)` wrote."
            ) from None
        if not made:
            raise UserError(
                f"{fspath(path)} holds no state of a refitting model. Give one that was saved with the smaller model and its "
                "dense one, not with a ratio."
            )
        return cls(known={layer: Known(**tables) for layer, tables in parts.items()})
