"""Runs a causal language model in three parts, each as a function of weights that come from wherever they are.

`prologue` (ids -> first hidden state and what every layer is called with), `run_layer` (one layer), `epilogue` (last hidden state ->
logits) are all Hugging Face's own forward: in the first and last part the layers' `forward` is replaced, on our own weightless
model, by one that hands the hidden state through. So masks, position embeddings, scaling and soft-capping are the model's own.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from secateur import axes
from secateur.axes import Kept
from secateur.families.binding import Binding
from secateur.families.resize import resize_layer, slice_inputs

Weights = Mapping[str, Tensor]


class _AllSeen(Exception):
    """Ends the prologue when the last layer has been called."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the model calls one layer with besides the hidden state: masks, position embeddings, ALiBi and the like."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Template:
    """A model without weights, bound to a device. Not safe to share between threads."""

    def __init__(self, binding: Binding, device: torch.device) -> None:
        self.binding = binding
        self.device = device
        for name, buffer in binding.model.named_buffers():
            owner, _, last = name.rpartition(".")
            setattr(binding.model.get_submodule(owner), last, buffer.to(device))
        # The rows of the embedding are renumbered, and its padding row matters to gradients only.
        binding.model.get_submodule(binding.embedding.rpartition(".")[0]).padding_idx = None  # type: ignore[assignment]

    def prologue(self, ids: Int[Tensor, "block token"], outer: Weights) -> tuple[Tensor, list[Call]]:
        """First hidden state [block, token, hidden] and the calls of all layers.

        `outer` holds the weights before the layers; its embedding may hold only some rows, which `ids` then number.
        """
        model: Any = self.binding.model
        prefix = model.base_model_prefix + "."
        inner = {n.removeprefix(prefix): w for n, w in outer.items() if n.startswith(prefix)}
        calls: list[Call] = []
        first: list[Tensor] = []

        def seen(number: int, hidden: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
            if number == 0:
                first.append(hidden)
            calls.append(Call(args=args, kwargs=kwargs))
            if number == self.binding.num_layers - 1:
                raise _AllSeen
            return hidden

        with self._handing_through(seen), suppress(_AllSeen):
            functional_call(model.base_model, inner, (), {"input_ids": ids, "use_cache": False})
        return first[0], calls

    def resized(self, number: int, kept: Kept) -> nn.Module:
        """A copy of a layer, without weights, for the sizes that `kept` leaves."""
        module = copy.deepcopy(self.binding.layer_module(number))
        resize_layer(module, self.binding.family, axes.kept_sizes(self.binding.sizes, kept))
        return module

    def resized_call(self, call: Call, kept: Kept) -> Call:
        if not kept:
            return call
        kwargs = slice_inputs(self.binding.family, dict(call.kwargs), self.binding.sizes, kept)
        return Call(args=call.args, kwargs=kwargs)

    def epilogue(
        self, hidden: Float[Tensor, "block token hidden"], outer: Weights, positions: Int[Tensor, " position"]
    ) -> Float[Tensor, "block position vocab"]:
        """Logits at some positions. `outer` needs everything but the embedding, and the head under its own name."""
        last = self.binding.num_layers - 1

        def seen(number: int, given: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
            return hidden if number == last else given

        # Whatever enters the layers is dropped by the last one.
        width = axes.shape(self.binding.outer[self.binding.embedding], self.binding.sizes)[1]
        blank = torch.zeros((*hidden.shape[:2], width), dtype=hidden.dtype, device=hidden.device)
        with self._handing_through(seen):
            out = functional_call(
                self.binding.model, dict(outer), (),
                {"inputs_embeds": blank, "use_cache": False, "logits_to_keep": positions},
            )  # fmt: skip
        return out.logits

    @contextmanager
    def _handing_through(self, seen: Callable[[int, Tensor, tuple[Any, ...], Mapping[str, Any]], Tensor]) -> Iterator[None]:
        modules = [self.binding.layer_module(i) for i in range(self.binding.num_layers)]

        def stand_in(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                rest = dict(kwargs)
                hidden = args[0] if args else rest.pop("hidden_states")
                out = seen(number, hidden, args[1:], rest)
                return (out,) if self.binding.family.returns_tuple else out

            return forward

        try:
            for number, module in enumerate(modules):
                module.forward = stand_in(number)
            yield
        finally:
            for module in modules:
                del module.forward


def run_layer(binding: Binding, module: nn.Module, weights: Weights, hidden: Tensor, call: Call) -> Tensor:
    """Run a layer module as a function of the given weights: [block, token, hidden] -> the same."""
    out = functional_call(module, dict(weights), (hidden, *call.args), dict(call.kwargs))
    return out[0] if binding.family.returns_tuple else out
