"""Readers of one pruned axis of one layer, as the original shapes hold them: for models that are pruned on trial."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from secateur.allocation.ladder import choose
from secateur.axes import Kept
from secateur.families.binding import Binding
from secateur.plan import Plan
from secateur.streaming.source import Source, read_layer
from secateur.surgery.compensate import Compensation
from secateur.surgery.rebuild import Rebuild, SeenOf, masked


@dataclass(frozen=True, kw_only=True)
class Trial:
    """`scores`: (layer, axis) -> scores of all units, by which it is chosen what stays. `target`: see `Rebuild`."""

    source: Source
    target: Binding
    scores: Mapping[tuple[int, str], Float[Tensor, " unit"]]
    compensation: Compensation
    seen: SeenOf

    def kept(self, layer: int, axis: str, count: int) -> Kept:
        """`count`: rungs that stay."""
        return {axis: choose(self.scores[layer, axis], axis, self.source.binding.sizes, count)}

    def readers(self, layer: int, axis: str, count: int) -> dict[str, Tensor]:
        """Weights and biases by relative name; dropped columns are zero, the others compensated."""
        binding = self.source.binding
        if count == binding.sizes[axis]:
            names = [n.removesuffix("weight") + kind for n in binding.readers(axis) for kind in ("weight", "bias")]
            return read_layer(self.source, layer, [n for n in names if n in binding.layer])
        layers = tuple(self.kept(layer, axis, count) if i == layer else {} for i in range(binding.num_layers))
        plan = Plan(model_type=binding.model_type, fingerprint="", sizes=dict(binding.sizes), layers=layers)
        rebuild = Rebuild(source=self.source, target=self.target, plan=plan, compensation=self.compensation, seen=self.seen)
        return masked(rebuild, layer, dict(rebuild.readers(layer)))
