"""The walk that refits: the dense model and the pruned one side by side, one layer of each in memory (see `sequential`)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from secateur import axes
from secateur.axes import Sizes
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.plan import Plan, parameters
from secateur.streaming.collect import Store
from secateur.streaming.finite import blame, finite
from secateur.streaming.hidden import HiddenStates, boundary, intact
from secateur.streaming.source import Source, read_layer, to_device
from secateur.streaming.template import run_layer
from secateur.streaming.tensorfile import TensorFile, TensorWriter
from secateur.streaming.walk import Walk
from secateur.surgery.regression import Fitted, Regression
from secateur.surgery.sequential import Sequential
from secateur.surgery.stages import Look, Stage, added, kept_rows, later_readers, look, stages

HELD = 4
"""Every so many calibration blocks, one is held out to choose ridges; of a single block the last of so many parts."""
DENSE, PRUNED = "hidden", "pruned"
OVERFLOW = "the refitted layer overflows. Use --compensate least-squares, or --dtype fp32."


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """One file of refitted weights for each layer, which appears when the layer is finished: the journal of the walk."""

    directory: Path

    def path(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:03d}.safetensors"

    def save(self, layer: int, weights: Mapping[str, Tensor]) -> None:
        layout = {name: (x.dtype, tuple(x.shape)) for name, x in weights.items()}
        with TensorWriter(self.directory / "layer.safetensors.partial", layout) as writer:
            for name, x in weights.items():
                writer.write(name, x.cpu().contiguous())
        os.replace(writer.path, self.path(layer))

    def load(self, layer: int) -> dict[str, Tensor]:
        """The weights and biases that differ from the sliced ones, by their names in the layer."""
        file = TensorFile.open(self.path(layer))
        return {name: file.read(name) for name in file.entries}

    def finished(self, num_layers: int) -> int:
        """How many layers from the first on are there, undamaged."""
        return next((i for i in range(num_layers) if not self._whole(i)), num_layers)

    def _whole(self, layer: int) -> bool:
        try:
            return self.path(layer).is_file() and bool(TensorFile.open(self.path(layer)))
        except UserError:
            return False


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What is refitted, on which blocks."""

    walk: Walk
    """Over the dense model."""
    ids: Int[Tensor, "block token"]
    plan: Plan
    how: Sequential
    rewritten: Rewritten
    spill: bool = False
    resume: bool = False
    report: list[dict[str, object]] = field(default_factory=list)
    """What was chosen for every matrix; filled by `run`."""

    def run(self) -> Iterator[int]:
        """Refit the layers that are not there yet; yields the number of each as it is stored."""
        num_layers, where = self.walk.binding.num_layers, self.rewritten.directory
        first = self.rewritten.finished(num_layers)
        if first < num_layers and not (self.resume and all(intact(boundary(where, first, n)) for n in (DENSE, PRUNED))):
            first = 0
        self._sweep(first)
        if first == num_layers:
            return
        shape = (*self.ids.shape, self.walk.binding.sizes["hidden"])
        with ExitStack() as stack:
            dense, pruned = (
                stack.enter_context(HiddenStates(shape, self.walk.dtype, directory=where, spill=self.spill, name=name))  # type: ignore[arg-type]
                for name in (DENSE, PRUNED)
            )
            self.walk.start(self.ids, None if first else dense)
            if first:
                dense.restore(first)
                pruned.restore(first)
            else:
                for a, b in self.walk.batches(shape):
                    pruned.put(a, dense.get(a, b))
                pruned.commit(0)
            for number in range(first, num_layers):
                changed = Layer(self, number, dense, pruned).run()
                for hidden in (dense, pruned):
                    hidden.commit(number + 1)
                self.rewritten.save(number, changed)  # after the boundaries: where it is, the walk can go on from there
                for hidden in (dense, pruned):
                    hidden.forget(number)
                yield number
            for hidden in (dense, pruned):
                hidden.forget(num_layers)

    def _sweep(self, first: int) -> None:
        done = first == self.walk.binding.num_layers
        keep = set() if done else {boundary(self.rewritten.directory, first, name) for name in (DENSE, PRUNED)}
        Store(directory=self.rewritten.directory).sweep(keep=None if done else boundary(self.rewritten.directory, first, DENSE))
        for path in self.rewritten.directory.glob(f"{PRUNED}-*.safetensors"):
            if path not in keep:
                path.unlink(missing_ok=True)


class Layer:
    """One layer while it is refitted. `dense` and `pruned` hold the hidden states before it, and after `run` those behind it."""

    def __init__(self, task: Refit, number: int, dense: HiddenStates, pruned: HiddenStates) -> None:
        self.task, self.walk, self.number = task, task.walk, number
        self.binding, self.kept = task.walk.binding, task.plan.layers[number]
        self.dense, self.pruned = dense, pruned
        self.module = self.walk.module(number)
        self.resized = self.walk.template.resized(number, self.kept)
        stored = read_layer(self.walk.source, number)
        self.types = {name: x.dtype for name, x in stored.items()}
        self.weights = to_device(stored, self.walk.device, self.walk.dtype)
        self.sliced = {n: axes.select(w, self.binding.layer[n], self.binding.sizes, self.kept) for n, w in self.weights.items()}
        self.changed: dict[str, Tensor] = {}

    @torch.no_grad()
    def run(self) -> dict[str, Tensor]:
        """The weights that were refitted, by relative name."""
        batches = self.walk.batches(self.task.ids.shape)
        first = batches[0]
        order = stages(self.binding, self.module, lambda: self._dense(*first))
        for at, stage in enumerate(order):
            if stage.reader or self.task.how.matrices == "all":
                self._refit(stage, later_readers(order, at), batches)
        for a, b in batches:
            dense, pruned = self._dense(a, b), self._pruned(a, b)
            if not finite(dense):
                raise blame(self.walk.source, self.number)
            if not finite(pruned):
                raise blame(self.walk.source, self.number, OVERFLOW)
            self.dense.put(a, dense)
            self.pruned.put(a, pruned)
        return self.changed

    def _dense(self, a: int, b: int) -> Tensor:
        hidden = self.dense.get(a, b).to(self.walk.device)
        return run_layer(self.binding, self.module, self.weights, hidden, self.walk.call(self.number, b - a))

    def _pruned(self, a: int, b: int) -> Tensor:
        call = self.walk.template.resized_call(self.walk.call(self.number, b - a), self.kept)
        hidden = self.pruned.get(a, b).to(self.walk.device)
        return run_layer(self.binding, self.resized, self.sliced, hidden, call)

    def _refit(self, stage: Stage, later: tuple[str, ...], batches: list[tuple[int, int]]) -> None:
        rows = {m: kept_rows(self.binding, m, self.kept) for m in stage.modules}
        repairs = stage.reader and added(self.module, lambda: self._dense(*batches[0]), stage, later)
        regression: Regression | None = None
        same = True
        for a, b in batches:
            was = look(self.module, lambda a=a, b=b: self._dense(a, b), stage, later)
            now = look(self.resized, lambda a=a, b=b: self._pruned(a, b), stage, later)
            lacks = [self._lack(was, now, m, rows[m], repairs) for m in stage.modules]
            same = same and not any(bool(x.any()) for x in lacks)
            x = now.input.flatten(0, -2)
            if regression is None:
                regression = Regression(
                    columns=x.shape[1], parts=[r.shape[1] for r in lacks], intercept=stage.biased, device=self.walk.device
                )  # fmt: skip
            regression.update(x, torch.cat(lacks, 1), self._held(a, b))
        assert regression is not None
        if same:  # nothing has changed before this stage yet
            return
        given = self.task.how.ridge
        try:
            solved = regression.solve(None if given < 0 else given)
        except UserError as error:
            raise blame(self.walk.source, self.number, str(error)) from None
        for module, found in zip(stage.modules, solved, strict=True):
            self._change(module, found, stage.biased)
            note = {"layer": self.number, "module": module, "ridge": found.ridge, "error": found.error, "repairs": repairs}
            self.task.report.append(note)

    def _lack(self, was: Look, now: Look, module: str, rows: Tensor | None, repairs: bool) -> Tensor:
        """[token, out] float32 or wider: what the output should be more than it is."""
        wide = torch.promote_types(self.walk.dtype, torch.float32)
        y = was.outputs[module] if rows is None else was.outputs[module].index_select(-1, rows.to(self.walk.device))
        lack = y.to(wide) - now.outputs[module].to(wide)
        if repairs:
            assert was.stream is not None and now.stream is not None
            lack = lack.view_as(was.stream) + (was.stream.to(wide) - now.stream.to(wide))
        return lack.flatten(0, -2)

    def _held(self, a: int, b: int) -> Tensor:
        """The tokens of a micro-batch that choose ridges: every fourth block's, the last of two or three, one block's last quarter."""
        blocks, length = self.task.ids.shape
        if blocks == 1:
            return torch.arange(length, device=self.walk.device) >= length - max(length // HELD, 1)
        number = torch.arange(a, b, device=self.walk.device)
        held = number % HELD == HELD - 1 if blocks >= HELD else number == blocks - 1
        return held[:, None].expand(b - a, length).flatten()

    def _change(self, module: str, found: Fitted, biased: bool) -> None:
        changes = {f"{module}.weight": found.change} | ({f"{module}.bias": found.intercept} if biased else {})
        for name, change in changes.items():
            spec, old = self.binding.layer[name], self.sliced[name]
            oriented = change.mT if spec.inputs and min(spec.inputs) == 0 and change.ndim == 2 else change
            base = self._stored(name, old)
            new = (base.to(torch.float64) + oriented).to(self.types[name])
            self.changed[name] = new
            self.sliced[name] = new.to(device=self.walk.device, dtype=self.walk.dtype)

    def _stored(self, name: str, computed: Tensor) -> Tensor:
        """A sliced weight as it is stored, where that says more than the type that is computed in."""
        if torch.promote_types(self.types[name], self.walk.dtype) == self.walk.dtype:
            return computed
        whole = self.walk.source.read(self.binding.layer_name(self.number, name))
        return axes.select(whole, self.binding.layer[name], self.binding.sizes, self.kept).to(self.walk.device)


def layer_weights(binding: Binding, source: Source, sizes: Sizes) -> int:
    """Bytes of one layer's weights in given sizes."""
    width = source.dtype(binding.layer_name(0, next(iter(binding.layer)))).itemsize
    return parameters(binding.layer.values(), sizes) * width


def working_bytes(binding: Binding, source: Source, sizes: Sizes) -> int:
    """Memory of a layer while it is refitted, beside the dense layer: the pruned one, and the largest regression.

    Matrices of one block that read the same axes may be one regression, such as q, k and v. A regression holds two Gram matrices
    (float32, and half of that more while they become whole), two of inputs with outputs and the change (float64), and one factor
    (float64).
    """
    together: dict[tuple[str, object], tuple[int, int]] = {}
    for name, spec in binding.layer.items():
        if len(spec.dims) == 2 and spec.inputs:
            read = min(spec.inputs)
            shape = axes.shape(spec, sizes)
            at = name.removesuffix(".weight").rpartition(".")[0], spec.dims[read]
            together[at] = shape[read], together.get(at, (0, 0))[1] + shape[1 - read]
    largest = max(8 * wide**2 + 8 * wide**2 + 3 * 8 * wide * high for wide, high in together.values())
    return largest + layer_weights(binding, source, sizes)
