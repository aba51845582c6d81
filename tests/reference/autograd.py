"""Whole-model autograd of the summed token loss: every gradient of a small model at once, as the naive oracle of the streamed ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NoFloat32(TorchFunctionMode):
    """Norms and softmaxes that compute in float32 compute in float64 where they are given float64."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if func is Tensor.float:
                return first
            if func is Tensor.to:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def whole_gradients(model: torch.nn.Module, ids: Tensor) -> Iterator[None]:
    """Inside, every parameter has the gradient of the loss summed over all predicted tokens."""
    parameters = list(model.parameters())
    wanted = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
        p.grad = None
    logits = model(ids).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = torch.nn.functional.cross_entropy(wide[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    try:
        yield
    finally:
        for p, flag in zip(parameters, wanted, strict=True):
            p.grad = None
            p.requires_grad_(flag)


def module_gradients(model: torch.nn.Module, ids: Tensor, paths: list[str]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each module: its input, the loss gradient at its input, and at its output; [block, token, channel]."""
    inputs, input_gradients, output_gradients, handles = {}, {}, {}, []
    for path in paths:

        def attach(_: Any, args: tuple[Tensor, ...], out: Tensor, path: str = path) -> None:
            inputs[path] = args[0].detach().clone()
            args[0].register_hook(lambda g: input_gradients.__setitem__(path, g))
            out.register_hook(lambda g: output_gradients.__setitem__(path, g))

        handles.append(model.get_submodule(path).register_forward_hook(attach))
    with whole_gradients(model, ids):
        pass
    for handle in handles:
        handle.remove()
    blocks = len(ids)
    return {
        path: tuple(x.reshape(blocks, -1, x.shape[-1]) for x in (inputs[path], input_gradients[path], output_gradients[path]))
        for path in paths
    }  # type: ignore[return-value]
