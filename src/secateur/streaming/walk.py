"""The forward walk: layers outside, batches inside; one layer's weights in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.families.binding import Binding
from secateur.streaming.finite import blame, finite
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.source import Source, read_layer, to_device
from secateur.streaming.template import Call, Template, run_layer

# Called with the input [token, channel] of a watched module; for the layer itself, with what goes in and what comes out.
Observer = Callable[..., None]
LAYER = ""
"""The path of the layer itself among those of its modules."""
# Layer number -> the observers of its modules, by module path.
Watch = Callable[[int], Mapping[str, Sequence[Observer]]]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a walk needs besides its blocks. `tokens` bounds the tokens of one micro-batch."""

    source: Source
    template: Template
    device: torch.device
    dtype: torch.dtype
    tokens: int = 1024
    calls: dict[int, list[Call]] = field(default_factory=dict)
    """The layers' calls for a micro-batch of so many blocks; filled by `start`."""

    @classmethod
    def over(cls, source: Source, *, device: torch.device, dtype: torch.dtype, tokens: int = 1024) -> "Walk":
        return cls(source=source, template=Template(source.binding, device), device=device, dtype=dtype, tokens=tokens)

    @property
    def binding(self) -> Binding:
        return self.source.binding

    def batches(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """(start, stop) of the micro-batches of [block, token, ...]."""
        size = max(1, self.tokens // shape[1])
        return [(at, min(at + size, shape[0])) for at in range(0, shape[0], size)]

    @torch.no_grad()
    def start(self, ids: Int[Tensor, "block token"], hidden: HiddenStates | None) -> None:
        """Embed the blocks into `hidden` (None: only learn the layers' calls, to go on with a walk that was interrupted)."""
        name = self.binding.embedding
        rows, numbered = torch.unique(ids, return_inverse=True)
        outer = to_device({n: self.source.read(n) for n in self._before()}, self.device, self.dtype)
        outer[name] = self.source.read_rows(name, rows).to(self.device, self.dtype)
        self.calls.clear()
        for a, b in self.batches(ids.shape):
            if hidden is None and b - a in self.calls:
                continue
            first, calls = self.template.prologue(numbered[a:b].to(self.device), outer)
            self.calls.setdefault(b - a, calls)
            if hidden is not None:
                hidden.put(a, first)
        if hidden is not None:
            hidden.commit(0)

    @torch.no_grad()
    def layers(
        self, hidden: HiddenStates, *, first: int = 0, watch: Watch | None = None, release: bool = False
    ) -> Iterator[int]:
        """Run the layers from `first` on; yields each layer's number when its output is complete in `hidden`.

        On a CUDA device the next layer is read while the current one computes; on the CPU that would cost a second layer's memory,
        and each layer is read over the one before. `release`: give a layer's memory back before yielding instead.
        """
        last, read = self.binding.num_layers, {}
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(1)) if self.device.type == "cuda" else None
            coming = pool.submit(read_layer, self.source, first) if pool and first < last else None
            for number in range(first, last):
                read = coming.result() if coming else read_layer(self.source, number, over=read)
                weights = to_device(read, self.device, self.dtype)
                coming = pool.submit(read_layer, self.source, number + 1) if pool and number + 1 < last else None
                self._run(number, weights, hidden, watch(number) if watch else {})
                del weights
                if release:
                    read = {}
                hidden.commit(number + 1)
                yield number

    def _run(
        self, number: int, weights: Mapping[str, Tensor], hidden: HiddenStates, observers: Mapping[str, Sequence[Observer]]
    ) -> None:
        module = self.module(number)
        sound = True
        with ExitStack() as hooks:
            for path in observers.keys() - {LAYER}:
                hooks.enter_context(_observed(module.get_submodule(path), observers[path]))
            for a, b in self.batches(hidden.shape):
                before = hidden.get(a, b).to(self.device)
                out = run_layer(self.binding, module, weights, before, self.call(number, b - a))
                sound = sound and finite(out)
                for see in observers.get(LAYER, ()):
                    see(before, out)
                hidden.put(a, out)
        if not sound:
            raise blame(self.source, number)

    @torch.no_grad()
    def logits(
        self, hidden: HiddenStates, *, tokens: int = 512
    ) -> Iterator[tuple[int, int, Float[Tensor, "block position vocab"]]]:
        """(first block, first position, logits) of all blocks, in pieces of at most `tokens` positions."""
        outer = self.outer_after()
        length = hidden.shape[1]
        step = max(1, tokens // length)
        for a in range(0, hidden.shape[0], step):
            last = hidden.get(a, min(a + step, hidden.shape[0])).to(self.device)
            for p in range(0, length, tokens):
                positions = torch.arange(p, min(p + tokens, length), device=self.device)
                yield a, p, self.template.epilogue(last, outer, positions)

    def _before(self) -> list[str]:
        """Weights used before the layers, without the embedding: everything outside them but the head is small."""
        return [n for n in self.binding.outer if n != self.binding.embedding and not self.binding.is_head(n)]

    def outer_after(self) -> dict[str, Tensor]:
        """The weights that `Template.epilogue` needs: the head and what stands before it, and a tied head's embedding."""
        keep = [n for n in self.binding.outer if n != self.binding.embedding]
        names = [*keep, self.binding.embedding] if self.binding.tied else keep
        return to_device({n: self.source.read(n) for n in names}, self.device, self.dtype)

    def module(self, number: int) -> nn.Module:
        """A layer's module, without weights, in the sizes it has in the source."""
        kept = self.source.kept(number)
        return self.template.resized(number, kept) if kept else self.binding.layer_module(number)

    def call(self, number: int, blocks: int) -> Call:
        """What a layer is called with for a micro-batch of so many blocks; known once `start` ran."""
        return self.template.resized_call(self.calls[blocks][number], self.source.kept(number))


class _observed:
    """Calls the observers with the input of a module, flattened to [token, channel], while the context lasts."""

    def __init__(self, module: nn.Module, observers: Sequence[Observer]) -> None:
        self.module, self.observers = module, observers

    def __enter__(self) -> None:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            for observer in self.observers:
                observer(args[0].flatten(0, -2))

        self.handle = self.module.register_forward_pre_hook(see)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
