"""What a probed model remembers between batches: an object of its own, that can be frozen, saved, loaded and exchanged."""

from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import UserError
from secateur.runtime.history import History

FORMAT = "secateur-state-1"


@dataclass(kw_only=True)
class State:
    """The histories, by layer and half ("attention" or "mlp").

    `online`: whether batches change them (only with a method that says how: `ema`). A frozen state gives every batch the same
    result whatever came before it.
    """

    histories: dict[tuple[int, str], History] = field(default_factory=dict)
    online: bool = False

    def copy(self) -> "State":
        """Another with the same numbers: one for each stream of batches that is to have a memory of its own."""
        copied = {key: History.of({n: t.clone() for n, t in h.tensors().items()}) for key, h in self.histories.items()}
        return State(histories=copied, online=self.online)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file."""
        tensors = {
            f"{layer}.{half}.{n}": t.contiguous() for (layer, half), h in self.histories.items() for n, t in h.tensors().items()
        }
        save_file(tensors, fspath(path), metadata={"format": FORMAT, "online": str(self.online)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "State":
        """Raises `UserError` for a file that is not there or is no state."""
        if not Path(path).is_file():
            raise UserError(f"there is no file {fspath(path)}. Give one that `state.save(path)` wrote.")
        try:
            with safe_open(fspath(path), "pt") as file:
                metadata = file.metadata() or {}
                parts: dict[tuple[int, str], dict[str, Tensor]] = {}
                if metadata.get("format") == FORMAT:
                    for name in file.keys():  # noqa: SIM118, no mapping
                        layer, half, table = name.split(".")
                        parts.setdefault((int(layer), half), {})[table] = file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(
                f"{fspath(path)} is not a safetensors file ({error}). Give one that `state.save(path)` wrote."
            ) from None
        if not parts:
            raise UserError(f"{fspath(path)} holds no state. Give a file that `state.save(path)` wrote.")
        return cls(histories={key: History.of(t) for key, t in parts.items()}, online=metadata.get("online") == "True")
