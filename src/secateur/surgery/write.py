"""The smaller model's weights, written shard by shard as they are rebuilt, in the spelling of the checkpoint they came from."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from secateur.streaming.checkpoint import INDEX, SINGLE, Checkpoint
from secateur.streaming.finite import blame, finite
from secateur.streaming.tensorfile import TensorFile, TensorWriter
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import Verifier, mismatch

SHARD = 5_000_000_000  # bytes, as `save_pretrained` long had it: files that every hub and file system takes

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Which weight goes into which file, under which key."""

    files: Mapping[str, Layout]
    """File name -> key -> type and shape."""
    place: Mapping[str, tuple[str, str]]
    """Parameter name in the source -> file name, key."""

    @classmethod
    def of(cls, rebuild: Rebuild, source: Checkpoint, limit: int = SHARD, *, own: bool = False) -> "Shards":
        """`own`: the keys are the model's own names, and not in the spelling of the source."""
        groups: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
        place: dict[str, tuple[int, str]] = {}
        filled = 0
        layout = rebuild.layout()
        if source.binding.tied in source.keys:  # some checkpoints store the tied head as well
            assert source.binding.tied is not None
            layout[source.binding.tied] = layout[source.binding.embedding]
        for name, (dtype, shape) in layout.items():
            size = prod(shape) * dtype.itemsize
            if filled and filled + size > limit:
                groups.append({})
                filled = 0
            key = rebuild.renumbered(name) if own else spelling(source, rebuild.renumbered(name))
            groups[-1][key] = (dtype, shape)
            place[name] = (len(groups) - 1, key)
            filled += size
        many = len(groups) > 1
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" if many else SINGLE for i in range(len(groups))]
        return cls(
            files=dict(zip(names, groups, strict=True)), place={n: (names[i], key) for n, (i, key) in place.items()}
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for layout in self.files.values() for dtype, shape in layout.values())

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for layout in self.files.values() for _, shape in layout.values())


def write(
    rebuild: Rebuild, source: Checkpoint, shards: Shards, directory: Path, verifier: Verifier | None = None
) -> Iterator[int]:
    """Write all weight files into an existing, empty directory; yields a layer's number in the source when it is on disk (and
    checked)."""
    with ExitStack() as opened:
        writers = {n: opened.enter_context(TensorWriter(directory / n, layout)) for n, layout in shards.files.items()}
        outer = [n for n in shards.place if source.binding.locate(n) is None]
        for name in outer:
            file, key = shards.place[name]
            origin, spelt = source.keys[name]
            writers[file].copy(key, origin, spelt)
        for layer in rebuild.plan.remaining:
            new = {}
            for name, x in rebuild.layer(layer):
                file, key = shards.place[rebuild.target.layer_name(layer, name)]
                if not finite(x):
                    raise blame(
                        source, layer, f"{key!r} overflows as it is compensated. Give a larger --ridge, or --compensate none."
                    )
                writers[file].write(key, x)
                if verifier is not None:
                    new[name] = TensorFile.open(directory / file).read(key)
                    if not torch.equal(new[name], x):
                        raise mismatch(layer, f"the weight {key!r} read back differs from what was written")
            if verifier is not None:
                verifier.check(layer, new)
            yield layer
    if len(shards.files) > 1:
        index = {
            "metadata": {"total_size": shards.num_bytes, "total_parameters": shards.num_parameters},
            "weight_map": {key: file for file, key in shards.place.values()},
        }  # fmt: skip
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def spelling(source: Checkpoint, name: str) -> str:
    """The key of a weight in the result: the source's own, also for a bias that only the result has."""
    if name in source.keys:
        return source.keys[name][1]
    weight = name.removesuffix(".bias") + ".weight"
    return source.keys[weight][1].removesuffix(".weight") + ".bias"
