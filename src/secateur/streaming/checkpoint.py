"""A Hugging Face checkpoint on disk: safetensors shards, read one weight at a time."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from secateur import axes
from secateur.axes import Kept
from secateur.errors import UserError
from secateur.families import family_for
from secateur.families.binding import Binding, bind
from secateur.families.unequal import Unequal, own_config
from secateur.plan import RECORD, read_record
from secateur.streaming.tensorfile import Entry, TensorFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# What a hub download needs: never pickles, never other frameworks' weights.
PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.py",
    "LICENSE*",
    "README.md",
)
SAMPLE = 1 << 16  # bytes read of each weight for the fingerprint


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`keys` maps a parameter's name to its file and its spelling there."""

    directory: Path
    binding: Binding
    keys: Mapping[str, tuple[TensorFile, str]]
    unused: tuple[str, ...]
    """Tensors of the files that the model does not have, as `from_pretrained` would leave them out."""

    layers: tuple[Kept, ...] = ()
    """What an earlier pruning left of each layer that stayed, where they have unequal sizes."""

    @classmethod
    def open(cls, directory: Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> "Checkpoint":
        """Check everything that can be checked without reading weights. `dtype`: of the computation; default the stored one."""
        files = shards(directory)
        config, unequal = read_config(directory, trust_remote_code=trust_remote_code)
        found = {key: file for file in files for key in file.entries}
        if narrow := {str(f.entries[k].dtype) for k, f in found.items() if f.entries[k].dtype not in FLOATS} - _BUFFERS:
            raise _quantised(directory, f"weights of type {', '.join(sorted(narrow))}")
        stored = dtype or _common_dtype(found)
        biases = unequal.biases if unequal else ()
        binding = _bound(directory, config, stored, trust_remote_code=trust_remote_code, biases=biases)
        keys = {name: (found[key], key) for name, key in spellings(binding, found).items()}
        unused = tuple(sorted(set(found) - {key for _, key in keys.values()}))
        record = read_record(directory)
        plan = None if record is None or record["stock"] else record["plan"]
        layers = () if plan is None else tuple(plan.layers[i] for i in plan.remaining)
        if unequal and not layers:
            layers = unequal.layers(binding.sizes)
        elif unequal and not unequal.describes(layers, binding.sizes):
            raise UserError(
                f"{directory / RECORD} and {directory / 'config.json'} say different sizes of the layers: they do not belong together. "
                f"Copy the directory again, whole."
            )
        _check(directory, binding, keys, layers)
        return cls(directory=directory, binding=binding, keys=keys, unused=unused, layers=layers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration, every weight's name, type and shape, and its first and last bytes."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.binding.config.to_diff_dict(), sort_keys=True, default=str).encode())
        for name, (file, key) in sorted(self.keys.items()):
            entry = file.entries[key]
            digest.update(f"{name} {entry.dtype} {entry.shape}".encode())
            with file.path.open("rb", buffering=0) as raw:
                for start in sorted({entry.start, max(entry.start, entry.stop - SAMPLE)}):
                    raw.seek(start)
                    digest.update(raw.read(min(SAMPLE, entry.stop - start)))
        return digest.hexdigest()

    def kept(self, layer: int) -> Kept:
        return self.layers[layer] if self.layers else {}

    def entry(self, name: str) -> Entry:
        file, key = self.keys[name]
        return file.entries[key]

    def dtype(self, name: str) -> torch.dtype:
        return self.entry(name).dtype

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        file, key = self.keys[name]
        return file.read(key, out)

    def read_rows(self, name: str, rows: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        file, key = self.keys[name]
        return file.read_rows(key, rows)

    def origin(self, name: str) -> str:
        file, key = self.keys[name]
        return f"the weight {key!r} in {file.path}"

    @property
    def num_bytes(self) -> int:
        return sum(self.entry(n).stop - self.entry(n).start for n in self.keys)

    @property
    def num_parameters(self) -> int:
        """As transformers counts them: a tied head that is stored all the same counts once."""
        return sum(torch.Size(self.entry(n).shape).numel() for n in self.keys if n != self.binding.tied)


_BUFFERS = {"torch.int64", "torch.bool", "torch.uint8"}  # of old masks and positions, which the model does not read


def locate(spec: str) -> Path:
    """A directory given by path, or the local copy of a hub model, downloaded if need be."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{spec!r} is a file. Give the directory of a Hugging Face model (with config.json), or a hub id.")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", spec):
        raise UserError(f"there is no directory {spec!r}. Give the directory of a Hugging Face model, or a hub id (org/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec, allow_patterns=list(PATTERNS)))
    except Exception as error:  # the hub raises a dozen kinds: not found, gated, offline, no network
        reason = str(error).strip().split("\n")[0].rstrip(".") + "."
        raise UserError(
            f"{spec!r} is not a directory here and could not be had from the hub: {type(error).__name__}: {reason} "
            f"Check the name, log in with `hf auth login` if the model is gated, or give a local directory."
        ) from error


def read_config(directory: Path, *, trust_remote_code: bool = False) -> tuple[Any, Unequal | None]:
    """The stock configuration of an unquantised model of a supported family; what its layers are, where they have unequal sizes."""
    from transformers import AutoConfig

    path, body = directory / "config.json", read_body(directory)
    if body.get("quantization_config") is not None:
        given = body["quantization_config"]
        kind = given.get("quant_method", "of an unknown kind") if isinstance(given, dict) else "of an unknown kind"
        raise _quantised(directory, f"a quantization_config ({kind})")
    try:
        own = own_config(directory)
        if own is not None:
            return own.stock(), Unequal.of(own)
    except Exception as error:  # of a strict configuration class, or for what is missing
        raise _invalid(path, body["model_type"], error) from error
    family_for(_Named(body["model_type"]))  # refuse early, before transformers' own message
    if body.get("auto_map") and not trust_remote_code:
        raise UserError(
            f"{directory} brings its own model code ({', '.join(body['auto_map'])}), which is not run unless you ask: "
            f"read the code, then give --trust-remote-code."
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code), None
    except Exception as error:  # strict configuration classes raise several kinds
        raise _invalid(path, body["model_type"], error) from error


def read_body(directory: Path) -> dict[str, Any]:
    """The configuration file of a model, as it is."""
    path = directory / "config.json"
    try:
        body = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Give the directory of a Hugging Face model, which has a config.json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Download or copy it again.") from error
    if not isinstance(body, dict) or not isinstance(body.get("model_type"), str):
        raise UserError(
            f"{path} has no `model_type`: it is not the configuration of a Hugging Face model. Give the directory of one."
        )
    return body


def _bound(directory: Path, config: Any, dtype: torch.dtype, *, trust_remote_code: bool, biases: Sequence[str] = ()) -> Binding:
    try:
        binding = bind(config, dtype=dtype, trust_remote_code=trust_remote_code, biases=biases)
    except UserError:
        raise
    except Exception as error:  # a model class finds what its configuration class let through, each in its own way
        raise _invalid(directory / "config.json", config.model_type, error) from error
    if not binding.num_layers:
        raise UserError(f"{directory / 'config.json'} describes a model without layers. Download or copy it again.")
    return binding


def _invalid(path: Path, model_type: str, error: Exception) -> UserError:
    why = " ".join(str(error).split()).rstrip(".")
    return UserError(
        f"{path} is not a valid {model_type!r} configuration: {type(error).__name__}: {why}. Mend it, or download it again."
    )


def shards(directory: Path) -> list[TensorFile]:
    """The weight files of a checkpoint, headers read and checked."""
    index, single = directory / INDEX, directory / SINGLE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} is not a safetensors index: {type(error).__name__}: {error}.") from error
        for name in names:
            if not isinstance(name, str) or PurePath(name).name != name or name in ("", ".", ".."):
                raise UserError(f"{index} points outside its directory: {name!r}. An index may only name files beside it.")
            if not (directory / name).is_file():
                raise UserError(f"the shard {directory / name}, named by {INDEX}, is missing. Download the checkpoint again.")
        return [TensorFile.open(directory / name) for name in names]
    if single.is_file():
        return [TensorFile.open(single)]
    if pickles := sorted(p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]):
        raise UserError(
            f"{directory} holds its weights as pickles only ({pickles[0]}), which can run code when opened. Only safetensors "
            f"are read: save the model with `save_pretrained`, or take a revision of it that has safetensors."
        )
    raise UserError(
        f"{directory} has neither {SINGLE} nor {INDEX}: no weights to read. Download the model again, whole, or save it with "
        f"`save_pretrained`."
    )


class _Named:
    def __init__(self, model_type: str) -> None:
        self.model_type = model_type


def _quantised(directory: Path, why: str) -> UserError:
    return UserError(
        f"{directory} is quantised: it has {why}. Pruning needs the weights in bf16, fp16, fp32 or fp64: prune the "
        f"unquantised model, then quantise the result."
    )


def _common_dtype(found: Mapping[str, TensorFile]) -> torch.dtype:
    """The type that most bytes of the weights have."""
    total: dict[torch.dtype, int] = {}
    for key, file in found.items():
        entry = file.entries[key]
        total[entry.dtype] = total.get(entry.dtype, 0) + entry.stop - entry.start
    return max((d for d in total if d in FLOATS), key=lambda d: total[d], default=torch.float32)


def spellings(binding: Binding, keys: Iterable[str]) -> dict[str, str]:
    """Parameter name -> key in the files, mapped as `from_pretrained` does: old names, and a missing base-model prefix.

    A tied head that is stored all the same is among them.
    """
    names = set(binding.names()) | ({binding.tied} if binding.tied else set())
    prefix = str(getattr(binding.model, "base_model_prefix", ""))
    out = {}
    for key in keys:
        renamed = binding.family.renames.get(key, key)
        name = next((n for n in (renamed, f"{prefix}.{renamed}") if n in names), None)
        if name is not None:
            out[name] = key
    return out


def _check(directory: Path, binding: Binding, keys: Mapping[str, tuple[TensorFile, str]], layers: Sequence[Kept]) -> None:
    if layers and len(layers) != binding.num_layers:
        raise UserError(
            f"{directory / RECORD} describes {len(layers)} layers and config.json {binding.num_layers}: they do not belong "
            f"together. Copy the directory again, whole."
        )
    for name in binding.names():
        if name not in keys:
            raise UserError(
                f"the weight {name!r} is in no file of {directory}. The checkpoint is incomplete: download it again."
            )
        file, key = keys[name]
        if file.entries[key].dtype not in FLOATS:
            raise _quantised(directory, f"the weight {key!r} in the type {file.entries[key].dtype}")
        at = binding.locate(name)
        sizes = axes.kept_sizes(binding.sizes, layers[at[0]]) if layers and at else binding.sizes
        shape, expected = file.entries[key].shape, axes.shape(binding.spec(name), sizes)
        if shape != expected:
            raise UserError(
                f"the weight {key!r} in {file.path} has the shape {list(shape)}, and its configuration says "
                f"{list(expected)}. Files of two checkpoints may be mixed here, or secateur.json is missing: copy it again, whole."
            )
