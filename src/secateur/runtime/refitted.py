"""A pruned model that each batch corrects, by what its lost channels say of a few tokens."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from secateur.errors import UserError
from secateur.families.binding import bind
from secateur.plan import Plan
from secateur.runtime.compact import Scratch
from secateur.runtime.inputs import batches, checked, seen
from secateur.runtime.probe_refit import Correction, Known, ProbeRefit, correct, spread
from secateur.runtime.refit_half import Corrected, Half, Learner, halves
from secateur.runtime.refit_state import RefitState
from secateur.runtime.scoring import require_fit
from secateur.runtime.standin import Standin

TAG = "secateur_corrections"  # the attribute of a key-value cache that its corrections are kept in


class Found(NamedTuple):
    """A layer's correction, or the matrix that has it in it; and which tokens get what besides: their samples, their positions."""

    how: Corrected | Correction
    exact: Float[Tensor, "probed out"]
    places: tuple[Int[Tensor, " probed"], Int[Tensor, " probed"]]


@dataclass(kw_only=True)
class Corrections:
    """Of one batch, for the steps that follow: it goes with its key-value cache."""

    owner: int
    """The model's `id`; not itself, as caches are copied and it is not."""
    by_layer: dict[int, Found] = field(default_factory=dict)
    done: bool = False


@dataclass(kw_only=True)
class Call:
    """One forward pass."""

    shape: tuple[int, int]
    valid: Bool[Tensor, "batch token"] | None
    kept: Corrections | None
    """What is remembered of it, or was; None without a cache."""
    whole: bool
    """The sequences are here from their beginning."""
    probes: bool
    """Nothing was known of its sequences when it began."""
    tokens: int = 0
    """Those that are no padding, where it probes."""
    places: dict[int, Int[Tensor, " probed"]] = field(default_factory=dict)
    unfit: list[tuple[int, Tensor]] = field(default_factory=list)

    def probed(self, count: int, device: torch.device) -> Int[Tensor, " probed"]:
        """Positions of that many tokens: the same in every layer."""
        if count not in self.places:
            self.places[count] = spread(self.valid, self.tokens, count, device)
        return self.places[count]


class Refitted(Standin):
    """Works in place of the smaller model: `generate`, calls and every other attribute are that model's own.

    `dense` is the model that it was pruned from, by `plan`. The MLP channels that left are copied from it; it is not used after
    that, so both together take no more memory than the dense model does.
    `memory="low"` keeps a generation's corrections as a few rows for each probed token, and multiplies by them at every step;
    "kept" makes one corrected output matrix for each layer of them when the first token is decoded.
    """

    def __init__(
        self,
        small: nn.Module,
        dense: nn.Module,
        plan: Plan,
        *,
        how: ProbeRefit | None = None,
        memory: Literal["kept", "low"] = "kept",
    ) -> None:
        if memory not in ("kept", "low"):
            raise UserError(f"memory={memory!r}. Allowed: 'kept', 'low'.")
        self.model: Any = small
        self.how, self.memory = how or ProbeRefit(), memory
        self.binding = bind(dense.config)
        self.state = RefitState()
        self._call: Call | None = None
        self._scratch = Scratch()
        self._idle = False
        self._held: Corrections | None = None
        self.halves = halves(small, dense, plan, self.binding)
        self._handles: list[Any] = []
        for half in self.halves:
            self._install(half)
        self._handles.append(small.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._handles.append(small.register_forward_hook(self._end))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The smaller model's own `generate`. The prompt corrects it, with a cache or without."""
        before, self._held = self._held, Corrections(owner=id(self))
        try:
            return self.model.generate(*args, **kwargs)
        finally:
            self._held = before

    def plain(self) -> nn.Module:
        """The smaller model as it was given; this object then has no further use."""
        for handle in self._handles:
            handle.remove()
        for half in self.halves:
            half.reader.__dict__.pop("forward", None)
        return self.model

    def _install(self, half: Half) -> None:
        entered: list[tuple[Any, Any]] = []
        plain = half.reader.forward

        def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self._call
            entered[:] = [(args, kwargs)] if call is not None and call.probes else []

        def forward(z: Tensor) -> Tensor:
            call = self._call
            if call is None:
                return plain(z)
            if not call.probes:
                return self._later(half, call, z, plain)
            args, kwargs = entered.pop()
            return self._probed(half, call, z, args, kwargs, plain)

        half.reader.forward = forward  # type: ignore[method-assign]
        self._handles.append(half.entry.register_forward_pre_hook(entering, with_kwargs=True))

    @torch.no_grad()
    def _probed(self, half: Half, call: Call, z: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], plain: Any) -> Tensor:
        rows = z.reshape(-1, z.shape[-1])
        count = self.how.count(call.tokens, half.gone)
        if not count:
            return plain(z)
        at = call.probed(count, z.device)
        valid = None if call.valid is None else call.valid.flatten().index_select(0, at)
        found = correct(rows.index_select(0, at), half.missed(args, kwargs, at), self._known(half), self.how.strength, valid)
        call.unfit.append((half.number, torch.isfinite(found.exact).all()))
        weight = half.reader.weight
        corrected = half.corrected(found, self._scratch.place("", weight.shape, weight))
        if call.kept is not None:
            call.kept.by_layer[half.number] = Found(found, found.exact, (at // call.shape[1], at % call.shape[1]))
        return _added(linear(rows, *corrected), at, found.exact).unflatten(0, z.shape[:-1])

    @torch.no_grad()
    def _later(self, half: Half, call: Call, z: Tensor, plain: Any) -> Tensor:
        """A step of sequences that were probed before."""
        found = call.kept.by_layer.get(half.number) if call.kept else None
        if found is None:
            return plain(z)
        if isinstance(found.how, Correction) and self.memory == "kept" and call.kept is not None:
            # Not while the prompt waits: memory that was never touched is slow, and many prompts are only scored.
            found = call.kept.by_layer[half.number] = found._replace(how=half.corrected(found.how, None))
        if isinstance(found.how, Correction):
            out = plain(z) + linear(linear(z, found.how.keys), found.how.values.mT, found.how.shift)
        else:
            out = linear(z, *found.how)
        if call.whole:
            samples, positions = found.places
            out = _added(out.flatten(0, -2), samples * call.shape[1] + positions, found.exact).unflatten(0, z.shape[:-1])
        return out

    def _known(self, half: Half) -> Known:
        if not isinstance(self.state, RefitState):
            raise UserError(f"`state` is a {type(self.state).__name__}. Give a `secateur.RefitState`, of this smaller model.")
        if half.number not in self.state.known:
            raise UserError(
                "nothing is known of the smaller model's layers yet. Call `calibrate(blocks)` with some text's token ids, or give "
                "it a saved state: `model.state = secateur.RefitState.load(path)`."
            )
        known = self.state.known[half.number]
        if known.weight.shape != (half.width, half.outputs):
            raise UserError(
                f"the state's map of layer {half.number} is {list(known.weight.shape)}, and {[half.width, half.outputs]} is needed. "
                "Give the state that was saved with this smaller model, or calibrate anew."
            )
        return known

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call = None
        if self._idle:
            return
        shape, valid = seen(args, kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) > 0:
            kept = getattr(cache, TAG, None)
            if kept is None or kept.owner != id(self):
                raise UserError(
                    "the key-value cache was not made by this model. Begin anew without it, as what goes with it is not known."
                )
            call = Call(shape=shape, valid=valid, kept=kept, whole=False, probes=not kept.by_layer)
        else:
            asked = kwargs.get("use_cache")
            cached = cache is not None or (self.model.config.use_cache if asked is None else asked)
            kept = self._held or (Corrections(owner=id(self)) if cached else None)
            call = Call(shape=shape, valid=valid, kept=kept, whole=True, probes=kept is None or not kept.done)
        if call.probes:
            call.tokens = shape[0] * shape[1] if valid is None else int(valid.sum())
        self._call = call

    def _end(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        if call.kept is not None:
            call.kept.done = True
        parts = output.values() if hasattr(output, "values") else output
        cache = next((part for part in parts if hasattr(part, "get_seq_length")), None)
        if cache is not None and call.whole:
            setattr(cache, TAG, call.kept)
        require_fit(call.unfit)

    @torch.no_grad()
    def calibrate(
        self,
        blocks: "Int[Tensor, 'block token'] | Iterable[Int[Tensor, 'block token']]",
        *,
        attention_mask: Tensor | None = None,
        batch: int = 8,
        most: int = 2**30,
    ) -> "Refitted":
        """Learn from token ids what the smaller model's channels say of the whole MLPs' outputs. `batch` blocks at a time, or as an
        iterable hands them out; as many layers in one pass over the text as `most` bytes of statistics have room for."""
        parts = checked(batches(blocks, attention_mask, batch))
        known: dict[int, Known] = {}
        group: list[Half] = []
        for half in (*self.halves, None):
            if half is None or sum(one.bytes for one in (*group, half)) > most:
                known |= self._learned(group, parts) if group else {}
                group = []
            group += [half] if half is not None else []
        self.state = RefitState(known=known)
        return self

    def _learned(self, group: Sequence[Half], parts: Sequence[tuple[Tensor, Tensor | None]]) -> dict[int, Known]:
        """One pass over the text."""
        device = self.model.device
        learners = [Learner(half, device) for half in group]
        self._idle = True
        with ExitStack() as stack:
            stack.callback(setattr, self, "_idle", False)
            for learner in learners:
                for handle in learner.watch():
                    stack.callback(handle.remove)
            for ids, mask in parts:
                valid = None if mask is None else mask.bool().flatten().to(device)
                for learner in learners:
                    learner.valid = valid
                self.model(ids.to(device), attention_mask=mask, use_cache=False)
        return {learner.half.number: learner.known() for learner in learners}


def _added(
    out: Float[Tensor, "token out"], at: Int[Tensor, " probed"], more: Float[Tensor, "probed out"]
) -> Float[Tensor, "token out"]:
    """`out` itself, with more at some rows; a row that is named twice gets it once."""
    return out.index_copy_(0, at, out.index_select(0, at) + more)
