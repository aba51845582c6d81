"""Statistics of the inputs of chosen modules, and of whole layers, gathered by one forward walk and kept on disk layer by layer."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from secateur import axes
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.statistics import ACCUMULATORS, STATISTICS
from secateur.streaming.hidden import HiddenStates, boundary, intact
from secateur.streaming.memory import layer_bytes
from secateur.streaming.tensorfile import TensorFile, TensorWriter
from secateur.streaming.walk import LAYER, Observer, Walk

Inputs = Literal["reader", "coupled"]
# Module path -> kind of statistic ("moments", "gram") -> the statistic of its input.
Seen = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which statistics of which modules' inputs are wanted: module path -> kinds. The same for every layer.

    The path `walk.LAYER` stands for the layer itself, its input and its output.
    """

    kinds: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, binding: Binding, pruned: Iterable[str], kinds: Iterable[str], inputs: Inputs = "reader") -> "Request":
        """`reader`: the modules that read a pruned axis. `coupled`: every matrix that mentions it."""
        wanted = frozenset(kinds)
        modules = {}
        for axis in pruned:
            for name, spec in binding.layer.items():
                if len(spec.dims) == 2 and (spec.reads(axis) or (inputs == "coupled" and spec.mentions(axis))):
                    modules[name.rpartition(".")[0]] = wanted
        return cls(kinds=modules if wanted else {})

    def __or__(self, other: "Request") -> "Request":
        modules = {*self.kinds, *other.kinds}
        return Request(kinds={m: self.kinds.get(m, frozenset()) | other.kinds.get(m, frozenset()) for m in sorted(modules)})

    def channels(self, binding: Binding, module: str) -> int:
        """Width of a module's input."""
        if module == LAYER:
            return binding.sizes["hidden"]
        spec = binding.layer[f"{module}.weight"]
        return axes.shape(spec, binding.sizes)[min(spec.inputs)]


@dataclass(frozen=True, kw_only=True)
class Store:
    """One file of statistics for each layer, which appears when the layer is finished: that is the journal of a walk.

    A layer's file keeps what earlier walks over the same tokens found, so going back to another method walks no more.
    """

    directory: Path

    def path(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:03d}.safetensors"

    def save(self, layer: int, seen: Seen) -> None:
        """Put statistics into a layer's file, beside what is there already."""
        tensors = {
            f"{module}:{kind}:{name}": x
            for module, kinds in seen.items() for kind, value in kinds.items() for name, x in value.to_tensors().items()
        }  # fmt: skip
        layout = {k: (x.dtype, tuple(x.shape)) for k, x in tensors.items()}
        old = self._file(layer)
        others = {k: (e.dtype, e.shape) for k, e in old.entries.items() if k not in tensors} if old else {}
        with TensorWriter(self.directory / "layer.safetensors.partial", layout | others) as writer:
            for key, x in tensors.items():
                writer.write(key, x.cpu())
            for key in others:
                assert old is not None
                writer.copy(key, old, key)
        os.replace(writer.path, self.path(layer))

    def load(self, layer: int, *, modules: Iterable[str] | None = None, kinds: Iterable[str] | None = None) -> Seen:
        """The statistics of a layer; of some modules, or of some kinds, alone, where that is all that is read."""
        file = TensorFile.open(self.path(layer))
        chosen = None if modules is None else set(modules)
        wanted = None if kinds is None else set(kinds)
        parts: dict[str, dict[str, dict[str, Tensor]]] = {}
        for key in file.entries:
            module, kind, name = key.split(":")
            if (chosen is None or module in chosen) and (wanted is None or kind in wanted):
                parts.setdefault(module, {}).setdefault(kind, {})[name] = file.read(key)
        return {m: {k: STATISTICS[k].from_tensors(t) for k, t in kinds.items()} for m, kinds in parts.items()}

    def has(self, layer: int, request: Request) -> bool:
        """Everything that is asked for is stored; a damaged file holds nothing."""
        file = self._file(layer)
        present = {tuple(key.split(":")[:2]) for key in file.entries} if file else set()
        return all((module, kind) in present for module, kinds in request.kinds.items() for kind in kinds)

    def finished(self, num_layers: int, request: Request) -> int:
        """How many layers from the first on hold everything that is asked for."""
        return next((i for i in range(num_layers) if not self.has(i, request)), num_layers)

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("layer-*.safetensors"))

    def sweep(self, *, keep: Path | None = None) -> None:
        """Remove what an interrupted walk left besides statistics, but one boundary that it goes on from."""
        for pattern in ("hidden-*.safetensors", "gradient-*.safetensors", "*.safetensors.partial"):
            for path in self.directory.glob(pattern):
                if path != keep:
                    path.unlink(missing_ok=True)

    def _file(self, layer: int) -> TensorFile | None:
        try:
            return TensorFile.open(self.path(layer)) if self.path(layer).is_file() else None
        except UserError:
            return None


def collect(
    walk: Walk, ids: Int[Tensor, "block token"], request: Request, store: Store, *, spill: bool = False, resume: bool = False
) -> Iterator[int]:
    """Walk the layers whose statistics the store lacks; yields the number of each as it is stored.

    With `resume` the walk goes on after the last finished layer of an interrupted one; else it begins anew.
    """
    num_layers = walk.binding.num_layers
    first = start_of(store, num_layers, request, resume=resume)
    store.sweep(keep=boundary(store.directory, first) if first < num_layers else None)
    if first == num_layers:
        return
    shape = (*ids.shape, walk.binding.sizes["hidden"])
    with HiddenStates(shape, walk.dtype, directory=store.directory, spill=spill) as hidden:  # type: ignore[arg-type]
        if first:
            hidden.restore(first)
            walk.start(ids, None)
        else:
            walk.start(ids, hidden)
        yield from _gather(walk, request, store, hidden, first)
        hidden.forget(num_layers)


def start_of(store: Store, num_layers: int, request: Request, *, resume: bool) -> int:
    """The layer that a walk for these statistics starts with; `num_layers` if it has nothing to do."""
    first = store.finished(num_layers, request)
    goes_on = first == num_layers or (resume and intact(boundary(store.directory, first)))
    return first if goes_on else 0


def _gather(walk: Walk, request: Request, store: Store, hidden: HiddenStates, first: int) -> Iterator[int]:
    current: dict[str, dict[str, Any]] = {}

    def watch(layer: int) -> dict[str, list[Observer]]:
        current.clear()
        for module, kinds in request.kinds.items():
            width = request.channels(walk.binding, module)
            current[module] = {kind: ACCUMULATORS[kind](width, walk.device) for kind in sorted(kinds)}
        return {module: [a.update for a in kinds.values()] for module, kinds in current.items()}

    # What is gathered is rounded and saved between layers; where that is large, the layer must not stay in memory beside it.
    release = memory_of(request, walk.binding) > layer_bytes(walk.binding, walk.dtype)
    for layer in walk.layers(hidden, first=first, watch=watch, release=release):
        found = {m: {k: a.result() for k, a in kinds.items()} for m, kinds in current.items()}
        current.clear()
        for module, kinds in found.items():
            for value in kinds.values():
                value.require_finite(f"layer {layer}, the input of {module}" if module else f"layer {layer}")
        store.save(layer, found)
        hidden.forget(layer)
        yield layer


def by_type(seen: Seen) -> dict[str, dict[type, Any]]:
    """The statistics of each module by their type, as criteria and compensations ask for them."""
    return {module: {type(value): value for value in kinds.values()} for module, kinds in seen.items()}


def kinds_of(types: Iterable[Any]) -> frozenset[str]:
    """Names of the kinds of statistics from their types."""
    return frozenset(t.kind for t in types)


def memory_of(request: Request, binding: Binding) -> int:
    """Bytes of one layer's statistics while they are gathered and saved."""
    per = {"moments": lambda n: 64 * n, "gram": lambda n: 8 * n * n + 8 * 512 * n, "layer-cosine": lambda n: 4 * 8 * 256 * n}
    return sum(per[k](request.channels(binding, m)) for m, kinds in request.kinds.items() for k in kinds)


def disk_of(request: Request, binding: Binding) -> int:
    """Bytes of all layers' statistics on disk."""
    per = {"moments": lambda n: 16 * n, "gram": lambda n: 4 * n * n, "layer-cosine": lambda n: 16}
    one = sum(per[k](request.channels(binding, m)) for m, kinds in request.kinds.items() for k in kinds)
    return one * binding.num_layers
