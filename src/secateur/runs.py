"""The run directory: what a job was, where it ran, and what it found. Everything expensive is kept here.

A directory belongs to one model, one set of calibration blocks and one arithmetic; its name is a hash of these, so that a second
ratio or method finds the statistics of the first.
"""

import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from secateur.errors import UserError

PACKAGES = ("secateur", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    path: Path

    @classmethod
    def make(cls, parent: Path, **identity: str) -> "RunDirectory":
        """The directory under `parent` for this identity, made if it is not there."""
        path = parent / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path=path)
            run.write("identity.json", identity)
        except OSError as error:
            raise UserError(f"cannot write the run directory {path}: {error.strerror}. Give another --run-dir.") from error
        return run

    @contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """No other process is in such a block of this directory meanwhile; calls `waiting` if one is, and waits for it.

        The lock ends with the process, however that ends.
        """
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
            yield

    def write(self, name: str, body: Any) -> None:
        """Replace a JSON file, all at once."""
        part = self.path / f"{name}.{os.getpid()}.partial"
        part.write_text(json.dumps(body, indent=2, sort_keys=True, default=str) + "\n")
        os.replace(part, self.path / name)

    def read(self, name: str) -> Any:
        """A JSON file's content; None where there is none or it is damaged."""
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def log(self, event: str, **facts: Any) -> None:
        """Add a line to the journal."""
        with (self.path / "journal.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}, default=str) + "\n")

    def remember(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a result under a key that says all it depends on."""
        self.write("results.json", {**(self.read("results.json") or {}), key: dict(value)})

    def recall(self, key: str) -> dict[str, Any] | None:
        return (self.read("results.json") or {}).get(key)


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count(), **found}


def hardware(device: str) -> dict[str, Any]:
    """What seconds were measured on. Asks torch where it is loaded: who has run a model has loaded it."""
    found: dict[str, Any] = {"cpu": _cpu(), "device": device}
    if torch := sys.modules.get("torch"):
        on_cuda = device.startswith("cuda") and torch.cuda.is_available()
        name = torch.cuda.get_device_name(device) if on_cuda else device
        found |= {"threads": torch.get_num_threads(), "device": name}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
