"""One half of one layer, attention or MLP: chooses what a batch keeps of it, and runs with that alone."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur import axes
from secateur.families.binding import Binding
from secateur.families.family import Block
from secateur.runtime.ahead import Ahead
from secateur.runtime.batch import Batch, Chosen
from secateur.runtime.compact import Rows, Weights, mentions
from secateur.runtime.history import History
from secateur.runtime.overlap import Overlap
from secateur.runtime.probe import Probe
from secateur.runtime.probe_pruning import ProbePruning
from secateur.runtime.scoring import Reading, best, importance, remembered, scores
from secateur.runtime.selected import Gather, require, select_in_place
from secateur.runtime.selection import Part, select


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is pruned of a half: its unit, how many stay of each of `groups` runs of units, and its modules."""

    unit: str
    units: int
    count: int
    groups: int
    block: Block
    reader: str
    """The module that reads the units: its path in the layer."""

    @property
    def name(self) -> str:
        return "mlp" if self.unit == "ffn" else "attention"

    @classmethod
    def of(cls, binding: Binding, unit: str, count: int) -> "Shape":
        sizes, ffn = binding.sizes, unit == "ffn"
        group = sizes.get("group", 1)
        (reader,) = binding.readers("ffn" if ffn else "kv")
        units = {"ffn": sizes["ffn"], "kv": sizes["kv"]}.get(unit, sizes["kv"] * group)
        return cls(
            unit=unit, units=units, count=count, groups=sizes["kv"] if unit == "group" else 1,
            block=binding.family.mlp if ffn else binding.family.attention, reader=reader.rpartition(".")[0],
        )  # fmt: skip


class Entry(nn.Module):
    """Around the first module of a half: lets the half choose before the module runs."""

    def __init__(self, inner: nn.Module, called: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        super().__init__()
        self.inner = inner
        self.called = called

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called(args, kwargs)
        return self.inner(*args, **kwargs)


class Half:
    """`dense` is the model's own layer, `small` its copy at the sizes that stay, whose weights this half loads, or, with
    `gather="kernel"`, reads in place for a batch that no other follows."""

    def __init__(
        self, binding: Binding, how: ProbePruning, number: int, shape: Shape, dense: nn.Module, small: nn.Module,
        gather: Gather = "copy",
    ) -> None:  # fmt: skip
        self.how, self.number, self.shape, self.dense, self.small = how, number, shape, dense, small
        self.key = (number, shape.name)
        self.family, self.sizes = binding.family, binding.sizes
        self.probe = how.probe if shape.name in how.probed else None
        self.norm = next((name for name in shape.block.norm if _has(dense, name)), None)
        device = next(dense.parameters()).device
        sources, reading = {}, {}
        for name, spec in binding.layer.items():
            if mentions(spec, shape.unit):
                rows = Rows.of(spec, binding.sizes, shape.unit, device)
                sources[name] = (_rows_first(dense.get_parameter(name), rows.dim), rows, rows.dim == 0)
                reading[name] = rows.dim in spec.inputs
        self.weights = Weights(sources=sources, targets={name: small.get_parameter(name) for name in sources})
        self.source = sources[f"{shape.reader}.weight"][0]  # [channel, out]
        self.reading = Reading.of(self.source, how.metric, shape.units)
        self.ahead = Ahead(dense, shape.block, shape.reader, self.source.shape[1], binding.family)
        self._bias(small.get_submodule(shape.reader))
        if gather == "kernel":
            require(device)
            self.weights.selected = select_in_place(small, {name: source for name, (source, _, _) in sources.items()}, reading)
        self.entry = Entry(small.get_submodule(shape.block.entry), self.called)
        self.early = shape.name == "mlp" and how.probe is not None and how.probe.early and _lone(self.entry.inner)
        self.means: tuple[History, int, Tensor] | None = None
        self.fixed: tuple[History, int, Chosen] | None = None  # what a history chose, and at which of its changes

    def _bias(self, reader: Any) -> None:
        """The smaller layer's own bias, where means of what is dropped are added."""
        self.bias: Tensor | None = None
        if self.how.compensate == "none":
            return
        given = getattr(reader, "bias", None)
        self.bias_given: Tensor | None = None if given is None else given.detach()
        bias = self.source.new_zeros(self.source.shape[1]) if given is None else given.detach().clone()
        reader.bias, self.bias = nn.Parameter(bias, requires_grad=False), bias

    def install(self, current: Callable[[], Batch]) -> None:
        """Put this half's entry into the smaller layer, after both halves were made."""
        self.current = current
        owner, _, last = self.shape.block.entry.rpartition(".")
        setattr(self.small.get_submodule(owner), last, self.entry)
        if self.how.ema is not None:
            self.small.get_submodule(self._reader()).register_forward_pre_hook(self._read)

    def _reader(self) -> str:
        entry, reader = self.shape.block.entry, self.shape.reader
        return f"{entry}.inner{reader.removeprefix(entry)}" if reader.startswith(entry + ".") else reader

    def begin(self, batch: Batch, overlap: Overlap) -> None:
        """The layer begins. Where the probe needs no more than is known now, it runs beside what comes in front of this half."""
        if not self.early or batch.begins or not self._due(batch) or self._probe(batch) is None:
            return
        stream, _ = batch.stream(self.shape.name, "earlier")
        assert stream is not None
        reads = [stream] if batch.valid is None else [stream, batch.valid]
        batch.begun[self.key] = overlap.begin(lambda: self.choose(batch, (), {}), reads, Chosen.tensors)

    def _due(self, batch: Batch) -> bool:
        """Whether this pass is to choose."""
        return self.key not in batch.choice.kept or (self.shape.unit == "ffn" and batch.due)

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The half's first module is about to run for the whole batch."""
        batch = self.current()
        if self._due(batch):
            begun = batch.begun.pop(self.key, None)
            chosen = self.choose(batch, args, kwargs) if begun is None else begun()
            batch.note(chosen)
            batch.choice.kept[self.key] = chosen.kept
        kept = batch.choice.kept[self.key]
        scratch, shared = batch.place(self.number, fixed=self.fixed is not None and kept is self.fixed[2].kept)
        history = batch.state.histories.get(self.key)
        if not self.weights.holds(kept, scratch, shared=shared):
            self.weights.load(kept, scratch, in_place=shared and bool(self.weights.selected))
            self._compensate(kept, history)
        elif history is not None and not self._knows(history):  # the same units, of another state
            self._compensate(kept, history)
        for name, text in self.family.inputs.items():
            if self.shape.unit != "ffn" and isinstance(kwargs.get(name), Tensor):
                kwargs[name] = _heads(kwargs[name], text, kept, self.sizes)

    def choose(self, batch: Batch, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Chosen:
        """What this batch keeps. `args` and `kwargs`: what the half's first module is called with; nothing where it is not yet."""
        history, probe = batch.state.histories.get(self.key), self._probe(batch)
        if probe is not None:
            return self._scored(batch, *self._probed(batch, probe, args, kwargs))
        assert history is not None
        if self.fixed is None or self.fixed[0] is not history or history.changes != self.fixed[1]:
            score = scores(remembered(history, self.how), self.reading, self.how.metric)
            chosen = Chosen(*self.key, None, score, best(score, self.shape.count, self.shape.groups))
            self.fixed = (history, history.changes, chosen)
        return self.fixed[2]

    def _probe(self, batch: Batch) -> Probe | None:
        """How this batch is probed; None where the history chooses."""
        probe = self.probe
        if probe is None:
            return None
        return probe if self.key not in batch.state.histories or self.pays(batch.shape, probe) else None

    def watch(self, current: Callable[[], Batch | None]) -> RemovableHandle:
        """Choose by a whole prompt while the dense layer runs it, which costs no probe."""

        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            batch = current()
            if self.probe is None or batch is None or not batch.begins or self.key in batch.choice.kept:
                return
            x = args[0].detach()
            samples, tokens = (torch.arange(size, device=x.device) for size in batch.shape)
            x = x.unflatten(0, batch.shape) if x.ndim == 2 else x
            chosen = self._scored(batch, Part(samples, tokens), x)
            batch.note(chosen)
            batch.choice.kept[self.key] = chosen.kept

        return self.dense.get_submodule(self.shape.reader).register_forward_pre_hook(see)

    def _scored(self, batch: Batch, part: Part, x: Float[Tensor, "sample token channel"]) -> Chosen:
        """By what the output matrix would read (`x`) of a part of the batch."""
        valid = None if batch.valid is None else part.of(batch.valid)
        c = importance(x, part.tokens, batch.state.histories.get(self.key), self.how, valid)
        score = scores(c, self.reading, self.how.metric)
        return Chosen(*self.key, part, score, best(score, self.shape.count, self.shape.groups))

    def pays(self, shape: tuple[int, int], probe: Probe) -> bool:
        """Whether a batch of that shape is worth a probe."""
        batch, length = shape
        total = sum(source.numel() for source, _, _ in self.weights.sources.values())
        return self.how.cost.pays(
            batch=batch, length=length, probe=probe, ahead=total - self.source.numel(),
            kept=self.shape.count * self.shape.groups / self.shape.units, total=total, item=self.source.element_size(),
        )  # fmt: skip

    def _probed(
        self, batch: Batch, probe: Probe, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Part, Float[Tensor, "sample token channel"]]:
        given = dict(kwargs)
        entering: Any = args[0] if args else given.pop("hidden_states", None)
        normed: Any = entering.unflatten(0, batch.shape) if entering is not None and entering.ndim == 2 else entering
        stream, own = batch.stream(self.shape.name, probe.stream)
        part = select(stream if stream is not None and probe.rank != "normed" else normed, batch.valid, probe)
        if own or stream is None:
            first = part.of(normed)
        else:
            first = part.of(stream)
            first = first if self.norm is None else self.dense.get_submodule(self.norm).forward(first)
        return part, self.ahead.run(first, part, batch.shape, args[1:], given)

    def _compensate(self, kept: Int[Tensor, " kept"], history: History | None) -> None:
        """The mean of what was dropped, through the output matrix, into the bias."""
        if self.bias is None or history is None:
            return
        if self.means is None or not self._knows(history):
            self.means = (history, history.changes, history.average().to(self.source.dtype))
        # The rows that were dropped and no others; as many for every choice, so that no device is waited for.
        channels = self.channels(kept)
        there = torch.zeros(len(self.source), device=kept.device).index_fill_(0, channels, 1.0)
        dropped = there.topk(len(self.source) - len(channels), largest=False).indices
        shift = torch.mv(self.source.index_select(0, dropped).mT, self.means[2].index_select(0, dropped))
        self.bias.copy_(shift if self.bias_given is None else self.bias_given + shift)

    def _knows(self, history: History) -> bool:
        """Whether `means` are those of the history as it is."""
        return self.means is not None and self.means[0] is history and self.means[1] == history.changes

    def channels(self, kept: Int[Tensor, " kept"]) -> Int[Tensor, " channel"]:
        """The columns of the output matrix that the kept units are."""
        width = len(self.source) // self.shape.units
        return (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()

    def _read(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        batch = self.current()
        past = self.how.ema
        if past is None or not batch.state.online or not batch.fresh:
            return
        x = args[0].unflatten(0, batch.shape) if args[0].ndim == 2 else args[0]
        batch.state.histories[self.key].follow(x, self.channels(batch.choice.kept[self.key]), batch.valid, past)


def _has(layer: nn.Module, name: str) -> bool:
    try:
        layer.get_submodule(name)
    except AttributeError:
        return False
    return True


def _lone(module: nn.Module) -> bool:
    """Whether a module is called with one argument (bloom's MLP is given the residual stream as well)."""
    given = inspect.signature(module.forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in given) <= 1


def _rows_first(weight: nn.Parameter, dim: int) -> Tensor:
    """The weight with the pruned dimension first, in memory too: the parameter itself becomes a view of that where it is second."""
    if dim == 1:
        weight.data = weight.data.mT.contiguous().mT
        return weight.data.mT
    return weight.detach()


def _heads(x: Tensor, text: str, kept: Int[Tensor, " kept"], sizes: axes.Sizes) -> Tensor:
    """The kept heads of a tensor whose first dimension is (batch kv)."""
    assert text.startswith("(batch kv)"), text
    return x.unflatten(0, (-1, sizes["kv"])).index_select(1, kept).flatten(0, 1)
