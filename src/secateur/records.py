"""The record of one command: what was asked, where it ran and what it found. One JSON file, in a directory of its own.

A record names models, texts and files without their directories, so that it can be handed on; which model it is of is told by
`identity`, which goes with the weights wherever they are moved. Imports no torch.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import UserError
from secateur.runs import environment, hardware

SCHEMA = 1
RECORD = "record.json"
MODEL_RECORD = "secateur.json"
"""The file beside the weights of a pruned model: `plan.RECORD`, whose `provenance` is the record of its pruning."""
SAMPLES, SAMPLE = 256, 4096  # places of a weight file that its identity reads, and bytes at each
SILENT = ("resume", "force", "run_dir", "max_memory")
"""Settings that say how a command ran, not what it asked: the same command with others replaces its record."""
ADVICE = (
    "Give the directory or the `record.json` that a command named on its last line, or a model that `secateur prune` wrote."
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a record is of. `identity`: None where the weights were not at hand."""

    name: str
    identity: str | None
    probed: str | None = None
    """How batches changed it: `dynamic 0.4`; None for the model as it is on the disk."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """`settings` and `result` as JSON objects. `models`: by their part in the command (`before`, `after`, `model`, `other`)."""

    verb: str
    command: str
    """The command line that does the same again; where it was read from something that has none, empty."""
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    models: Mapping[str, Model] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What a pruning decided, for its plots: see `recipes.figures`."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    time: str = ""
    origin: str = "a record"
    """Where it was read, for messages; not part of it."""

    @classmethod
    def now(cls, verb: str, *, device: str = "cpu", **facts: Any) -> "Record":
        """A record of here and now."""
        return cls(
            verb=verb, environment=environment() | hardware(device), time=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        models = {part: vars(model) for part, model in self.models.items()}
        kept = {name: value for name, value in vars(self).items() if name not in ("models", "origin")}
        return {"schema": SCHEMA, **kept, "models": models}

    @classmethod
    def from_json(cls, body: Any, origin: str) -> "Record":
        """Raises `UserError` for anything but a record of this schema."""
        if not isinstance(body, dict) or "schema" not in body:
            raise UserError(f"{origin} is not a record of secateur: it has no `schema`. {ADVICE}")
        if body["schema"] != SCHEMA:
            raise UserError(
                f"{origin} has schema {body['schema']!r}, and this version reads schema {SCHEMA}. Read it with the version that "
                f"wrote it, or run its command again."
            )
        kinds = {"verb": str, "command": str, "time": str, "settings": dict, "result": dict, "models": dict, "figures": dict,
                 "environment": dict}  # fmt: skip
        for name, kind in kinds.items():
            if not isinstance(body.get(name), kind):
                noun = "a text" if kind is str else "an object"
                raise UserError(
                    f"{origin} is damaged: `{name}` is {_shown(body.get(name))}, and must be {noun}. Run its command again."
                )
        models = {part: _model(part, value, origin) for part, value in body["models"].items()}
        return cls(**{name: body[name] for name in kinds if name != "models"}, models=models, origin=origin)

    def leave(self, parent: Path) -> Path:
        """Write it to a directory under `parent`, the same for the same command and settings, and say which file it is.

        Raises `OSError` where it cannot be written.
        """
        asked = {name: value for name, value in self.settings.items() if name not in SILENT}
        parts = {part: model.identity for part, model in self.models.items() if part != "after"}
        identity = json.dumps([self.verb, asked, parts], sort_keys=True, default=str)
        return self.leave_in(parent / f"{self.verb.replace(' ', '-')}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}")

    def leave_in(self, directory: Path) -> Path:
        """Write it as the record of a directory. Raises `OSError` where it cannot be written."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / RECORD
        part = directory / f"{RECORD}.{os.getpid()}.partial"
        try:
            part.write_text(json.dumps(self.to_json(), indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
            os.replace(part, path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        return path


def read_runs(
    paths: Sequence[Path], warn: Callable[[str], None] = lambda _: None, check: Callable[[Record], None] = lambda _: None
) -> list[Record]:
    """The records of run directories, record files, pruned models, and directories that hold run directories; each once.

    One that cannot be read among others in a directory of runs is left out with a warning. Raises `UserError` for what is none of
    these, and for one that was named itself or was the only one. `check` raises one for a record that holds something else than
    its command writes.
    """
    read = [record for path in paths for record in sorted(_read_all(path, warn, check), key=lambda record: record.time)]
    records = {json.dumps(record.to_json(), sort_keys=True): record for record in read}
    return list(records.values())  # a pruned model holds the record that lies in its run directory as well


def _read_all(path: Path, warn: Callable[[str], None], check: Callable[[Record], None]) -> list[Record]:
    found: list[Record] = []
    refused: list[UserError] = []
    for file in _files(path):
        try:
            record = _read(file)
            check(record)
            found.append(record)
        except UserError as error:
            refused.append(error)
    if refused and not found:
        raise refused[0]
    for error in refused:
        warn(f"left out: {error}")
    return found


def identity(spec: str | Path) -> str | None:
    """SHA-256 over the weight files of a local model or a downloaded hub model: headers, sizes and samples of their bytes.

    None where there are none here: nothing is downloaded.
    """
    directory = _directory(spec)
    shards = sorted(directory.glob("*.safetensors")) if directory else []
    digest = hashlib.sha256()
    try:
        for shard in shards:
            _sample(shard, digest)
    except OSError:
        return None
    return digest.hexdigest() if shards else None


def _sample(shard: Path, digest: Any) -> None:
    size = shard.stat().st_size
    digest.update(f"{size} ".encode())
    with shard.open("rb", buffering=0) as file:
        for number in range(SAMPLES):
            file.seek(number * max(size - SAMPLE, 0) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))


def _directory(spec: str | Path) -> Path | None:
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(spec), "config.json")
    except ValueError:  # not the name of a hub model
        return None
    return Path(found).parent if isinstance(found, str) else None


def _files(path: Path) -> list[Path]:
    """What is to be read at a path that a person gave."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"there is no {str(path)!r}. {ADVICE}")
    for name in (RECORD, MODEL_RECORD):
        if (path / name).is_file():
            return [path / name]
    found = sorted([*path.glob(f"*/{RECORD}"), *path.glob(f"*/{MODEL_RECORD}")])
    if not found:
        raise UserError(
            f"{str(path)!r} holds no record: neither {RECORD}, nor {MODEL_RECORD}, nor a directory with one. {ADVICE}"
        )
    return found


def _read(file: Path) -> Record:
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error.strerror or error}. {ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is not JSON: {error}. {ADVICE}") from error
    if not (isinstance(body, dict) and "plan" in body and "provenance" in body):
        return Record.from_json(body, str(file))
    if not isinstance(body["provenance"], dict) or "schema" not in body["provenance"]:
        raise UserError(
            f"{str(file)!r} holds no record of how the model was pruned: an earlier secateur wrote it. Prune the model again for a "
            f"report."
        )
    return Record.from_json(body["provenance"], str(file))


def _model(part: str, value: Any, origin: str) -> Model:
    fits = isinstance(value, dict) and isinstance(value.get("name"), str)
    if not fits or not all(isinstance(value.get(name), str | None) for name in ("identity", "probed")):
        raise UserError(f"{origin} is damaged: the model `{part}` is {_shown(value)}. Run its command again.")
    return Model(name=value["name"], identity=value.get("identity"), probed=value.get("probed"))


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
