"""A model that is pruned anew for each batch, in place of the model it was."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from secateur import axes
from secateur.errors import UserError
from secateur.families.binding import Binding, bind
from secateur.families.resize import resize_layer
from secateur.runtime import prompt
from secateur.runtime.ahead import twin
from secateur.runtime.batch import Batch, Choice, Chosen
from secateur.runtime.compact import Scratch
from secateur.runtime.half import Half, Shape
from secateur.runtime.history import History
from secateur.runtime.inputs import batches, checked, seen
from secateur.runtime.overlap import Overlap
from secateur.runtime.probe_pruning import ProbePruning
from secateur.runtime.scoring import require_fit
from secateur.runtime.selected import Gather, check
from secateur.runtime.standin import Standin
from secateur.runtime.state import State
from secateur.runtime.widths import Widths

Memory = Literal["kept", "low"]
TAG = "secateur_choice"  # the attribute of a key-value cache that its choice is kept in


class Probed(Standin):
    """Works in place of the model: `generate`, calls and every other attribute are the model's own, whose layers are pruned.

    `state` is what is remembered between batches; `widths` what stays of each layer. `memory="low"` has one place for compact
    weights, which the layers fill in turn, at every step; "kept" one for each layer that is used again: in generation, and where
    the history chooses.
    `rechoose`: MLP channels are chosen again after so many generated tokens.
    `gather="kernel"`: where layers would take turns with one place, the kept rows are not copied there: on CUDA a Triton kernel reads
    them in the dense weights. (On a CPU they are copied for each product: the same results, and no gain.)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ratio: float,
        how: ProbePruning | None = None,
        memory: Memory = "kept",
        rechoose: int | None = None,
        gather: Gather = "copy",
    ) -> None:
        self.model: Any = model
        self.how = how or ProbePruning()
        self.ratio, self.memory, self.rechoose = ratio, memory, rechoose
        if memory not in ("kept", "low"):
            raise UserError(f"memory={memory!r}. Allowed: 'kept', 'low'.")
        if rechoose is not None and rechoose < 1:
            raise UserError(f"rechoose={rechoose}. Allowed: from 1 token, or None.")
        check(gather)
        self.gather: Gather = gather
        self.binding: Binding = _bound(model)
        self.widths = Widths.of(self.binding, self.how, ratio)
        self.state = State(online=self.how.ema is not None)
        self._scratch: dict[int, Scratch] = {}
        self._batch: Batch | None = None
        self._held: Choice | None = None
        self._idle = False
        self._overlap = Overlap()
        self._record: list[Chosen] | None = None
        self._layers: list[nn.Module] = list(model.get_submodule(self.binding.family.layers))  # type: ignore[arg-type]
        self._halves: dict[tuple[int, str], Half] = {}
        self._handles: list[Any] = []
        self._install()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`. The prompt says what stays, with a cache or without."""
        with self.one_choice():
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def one_choice(self) -> Iterator[Choice]:
        """While it lasts, what the first batch chose stays chosen, for batches without a cache too."""
        before, self._held = self._held, Choice()
        try:
            yield self._held
        finally:
            self._held = before

    def _install(self) -> None:
        binding, how = self.binding, self.how
        units = {
            name: count for name, count in ((how.attention, self.widths.heads), ("ffn", self.widths.ffn)) if count is not None
        }
        if self.model.training:
            raise UserError("the model is in training mode. Call `model.eval()` first: a probed model is for inference.")
        if any("forward" in layer.__dict__ for layer in self._layers):
            raise UserError(
                "the model's layers run something else than their class does; is it probed already? Call `dense()` first."
            )
        for number, layer in enumerate(self._layers):
            small = None
            if number >= how.keep_first and units:
                small = twin(layer).requires_grad_(False)
                resize_layer(small, binding.family, self.widths.sizes(binding.sizes, how.attention))
                small = self._halved(number, layer, small, units)
            self._intercept(number, layer, small)
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(self._end, always_call=False))

    def _halved(self, number: int, layer: nn.Module, small: nn.Module, units: dict[str, int]) -> nn.Module:
        for part, parameter in list(small.named_parameters()):  # the copy's own, so that its weights can be exchanged
            owner, _, last = part.rpartition(".")
            module = small.get_submodule(owner)
            setattr(module, last, nn.Parameter(parameter.data, requires_grad=False))
        halves = [
            Half(self.binding, self.how, number, Shape.of(self.binding, unit, count), layer, small, self.gather)
            for unit, count in units.items()
        ]
        for half in halves:
            half.install(self._current)
            self._halves[number, half.shape.name] = half
            if self.how.prompt == "dense":
                self._handles.append(half.watch(lambda: self._batch))
        return small

    def _intercept(self, number: int, layer: nn.Module, small: nn.Module | None) -> None:
        dense = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            batch = self._batch
            if batch is None:
                return dense(*args, **kwargs)
            if not args:
                args = (kwargs.pop("hidden_states"),)
            batch.enter(args[0])
            cache = next((c for c in (*args, *kwargs.values()) if hasattr(c, "get_seq_length")), None)
            if cache is not None:
                setattr(cache, TAG, batch.choice)
                batch.cached = True
            if small is None:
                return dense(*args, **kwargs)
            if (number, "mlp") in self._halves:
                self._halves[number, "mlp"].begin(batch, self._overlap)
            return prompt.run(dense, small, batch, args, kwargs)

        def between(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self._batch is not None:
                x = args[0]
                self._batch.between = x.unflatten(0, self._batch.shape) if x.ndim == 2 else x

        layer.forward = forward  # type: ignore[method-assign]
        for module in (layer, small):
            for name in self.binding.family.mlp.norm if module is not None else ():
                found = dict(module.named_modules()).get(name)  # type: ignore[union-attr]
                if found is not None:
                    self._handles.append(found.register_forward_pre_hook(between))
                    break

    def _current(self) -> Batch:
        assert self._batch is not None
        return self._batch

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._idle:
            self._batch = None
            return
        shape, valid = seen(args, kwargs)
        cache = kwargs.get("past_key_values")
        fresh = cache is None or int(cache.get_seq_length()) == 0
        choice = (self._held or Choice()) if fresh else getattr(cache, TAG, None)
        if choice is None:
            raise UserError(
                "the key-value cache was not made by this probed model. Begin anew without it, as it holds other heads."
            )
        if not isinstance(self.state, State):
            raise UserError(f"`state` is a {type(self.state).__name__}. Give a `secateur.State`, of this model and method.")
        if self._halves:
            self._needs_history()
        if self._held is not None and not choice.prompt:
            choice.prompt = shape[1]
        choice.steps += bool(choice.kept)
        due = self.rechoose is not None and choice.steps > 0 and choice.steps % self.rechoose == 0
        self._batch = Batch(
            shape=shape, valid=valid, choice=choice, state=self.state, fresh=fresh, due=due, scratch=self._scratch,
            low=self.memory == "low", record=self._record, dense_prompt=self.how.prompt == "dense",
        )  # fmt: skip

    def _needs_history(self) -> None:
        if self.how.history == "none":
            return
        missing = [key for key in self._halves if key not in self.state.histories]
        if missing:
            raise UserError(
                "the model has no history of its channels yet. Call `calibrate(blocks)` with some text's token ids, or give it a "
                "saved state: `model.state = secateur.State.load(path)`."
            )

    def _end(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            require_fit(batch.unfit)

    @torch.no_grad()
    def calibrate(
        self,
        blocks: "Int[Tensor, 'block token'] | Iterable[Int[Tensor, 'block token']]",
        *,
        attention_mask: Tensor | None = None,
        batch: int = 8,
    ) -> "Probed":
        """Learn the history from token ids, by the dense model. `batch` blocks at a time, or as an iterable hands them out."""
        if self.how.history == "none":
            raise UserError("this method has no history, so there is nothing to calibrate.")
        parts = checked(batches(blocks, attention_mask, batch))
        length = max(ids.shape[1] for ids, _ in parts)
        positions = length if self.how.history == "position" else None
        histories: dict[tuple[int, str], History] = {}
        with ExitStack() as stack:
            stack.enter_context(self._dense_only())
            for key, half in self._halves.items():
                histories[key] = History.empty(len(half.source), positions, half.source.device)
                stack.enter_context(_watching(half, histories[key], lambda: current))
            for ids, mask in parts:
                current = (ids.shape[0], ids.shape[1], None if mask is None else mask.bool().to(self.model.device))
                self.model(ids.to(self.model.device), attention_mask=mask, use_cache=False)
        self.state = State(histories=histories, online=self.state.online)
        return self

    @contextmanager
    def _dense_only(self) -> Iterator[None]:
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def compile(self, **options: Any) -> "Probed":
        """Compile the pruned halves with `torch.compile(**options)`. Choosing stays outside, and copies into tensors that do not
        change their place or shape: no batch compiles anew for what it keeps."""
        for half in self._halves.values():
            half.entry.inner = torch.compile(half.entry.inner, **options)  # type: ignore[assignment]
        return self

    @contextmanager
    def recorded(self) -> "Iterator[list[Chosen]]":
        """Collects what each half of each layer chose, and by which probe and scores, while the context lasts."""
        self._record = []
        try:
            yield self._record
        finally:
            self._record = None

    def dense(self) -> nn.Module:
        """The model as it was given; this object then has no further use."""
        for handle in self._handles:
            handle.remove()
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
            for parameter in layer.parameters():
                parameter.data = parameter.data.contiguous()
        self._halves.clear()
        self._scratch.clear()
        return self.model


def _bound(model: nn.Module) -> Binding:
    binding = bind(model.config)
    layers = model.get_submodule(binding.family.layers)
    for name, spec in binding.layer.items():
        for number, layer in enumerate(layers):  # type: ignore[arg-type]
            shape = tuple(layer.get_parameter(name).shape)
            if shape != axes.shape(spec, binding.sizes):
                raise UserError(
                    f"layer {number}'s {name} has the shape {list(shape)}, and the configuration says "
                    f"{list(axes.shape(spec, binding.sizes))}. A model with unequal layers cannot be probed: give the dense one."
                )
    return binding


@contextmanager
def _watching(half: Half, history: History, current: Any) -> Iterator[None]:
    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        batch, length, valid = current()
        history.add(args[0].reshape(batch, length, -1), valid)

    handle = half.dense.get_submodule(half.shape.reader).register_forward_pre_hook(see)
    try:
        yield
    finally:
        handle.remove()
