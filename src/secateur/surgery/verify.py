"""Every layer of the result, read back from disk, against the original with the dropped units masked and layers left out."""

from collections.abc import Mapping
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur import axes
from secateur.errors import UserError
from secateur.streaming.finite import blame, finite
from secateur.streaming.source import read_layer, to_device
from secateur.streaming.template import Template, run_layer
from secateur.streaming.walk import Walk
from secateur.surgery.rebuild import Rebuild, masked

FULL_PRECISION_LAYER = 256 << 20  # bytes of a layer in float32 up to which the check computes in float32
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class Verifier:
    """Carries a calibration batch through the masked original, one layer at a time."""

    def __init__(self, rebuild: Rebuild, ids: Int[Tensor, "block token"], dtype: torch.dtype | None = None) -> None:
        """`dtype`: to compute in, where it is not to be `dtype_of`."""
        self.rebuild = rebuild
        target, source = rebuild.target, rebuild.source
        self.dtype = dtype or self.dtype_of(rebuild)
        self.device = torch.device("cpu")
        self.template = Template(target, self.device)
        rows, numbered = torch.unique(ids, return_inverse=True)
        outer = {n: source.read(n) for n in target.outer if n != target.embedding and not target.is_head(n)}
        outer = to_device(outer, self.device, self.dtype)
        outer[target.embedding] = source.read_rows(target.embedding, rows).to(self.dtype)
        with torch.no_grad():
            self.hidden, self.calls = self.template.prologue(numbered, outer)
        self.errors: list[float] = []

    @staticmethod
    def dtype_of(rebuild: Rebuild) -> torch.dtype:
        """Float32 (float64 where it is stored), unless a layer is too large for that."""
        source = rebuild.source
        names = [rebuild.target.layer_name(0, name) for name in source.binding.layer]
        elements = sum(prod(axes.shape(spec, source.binding.sizes)) for spec in source.binding.layer.values())
        stored = source.dtype(names[0])
        return torch.float32 if elements * 4 <= FULL_PRECISION_LAYER and stored != torch.float64 else stored

    @torch.no_grad()
    def check(self, layer: int, new: Mapping[str, Tensor]) -> None:
        """`new`: the weights of one layer as read back from the disk. `layer`: its number in the source; only those that stay."""
        target, kept, call = self.rebuild.target, self.rebuild.plan.layers[layer], self.calls[layer]
        source = self.rebuild.source.binding.layer
        whole = read_layer(self.rebuild.source, layer)
        for name, spec in target.layer.items():
            if name not in source:  # a bias that only the result has
                whole[name] = torch.zeros(axes.shape(spec, target.sizes), dtype=new[name].dtype)
        whole |= masked(self.rebuild, layer, new)
        whole = to_device(whole, self.device, self.dtype)
        expected = run_layer(target, target.layer_module(layer), whole, self.hidden, call)
        del whole
        if not finite(expected):
            raise blame(self.rebuild.source, layer)
        module, resized = self.template.resized(layer, kept), self.template.resized_call(call, kept)
        got = run_layer(target, module, to_device(new, self.device, self.dtype), self.hidden, resized)
        error = float((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))
        if not error <= TOLERANCE[self.dtype]:  # also catches NaN
            raise mismatch(layer, f"its output is off by {error:.1e}, relative; at most {TOLERANCE[self.dtype]:.0e} is allowed")
        self.errors.append(error)
        self.hidden = expected

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "block token vocab"]:
        """Of the masked original, after every layer that stays was checked."""
        walk = Walk(source=self.rebuild.source, template=self.template, device=self.device, dtype=self.dtype)
        return self.template.epilogue(self.hidden, walk.outer_after(), torch.arange(self.hidden.shape[1]))


def mismatch(layer: int, what: str) -> UserError:
    return UserError(
        f"the written checkpoint failed its check at layer {layer}: {what}. Nothing was put in the output directory. "
        f"The disk or the memory may be failing; if a second run says the same, this is a bug in secateur."
    )
