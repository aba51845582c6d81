"""One MLP that lost channels: what stayed, what left, and what calibration text says of both."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import linear

from secateur import axes
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.families.resize import resize_layer
from secateur.plan import Plan
from secateur.runtime.ahead import Ahead, twin
from secateur.runtime.probe_refit import Correction, Known, precision
from secateur.statistics.moments import MomentsAccumulator
from secateur.surgery.regression import USUAL, Regression

Corrected = tuple[Tensor, Tensor]
"""A layer's output matrix [out, kept] and bias."""


class Half:
    """One layer's MLP: the smaller model's, and the channels that it lost."""

    def __init__(self, number: int, small: nn.Module, lost: nn.Module, binding: Binding) -> None:
        block = binding.family.mlp
        ((name, self.spec),) = binding.readers("ffn").items()
        path = name.rpartition(".")[0]
        self.number = number
        self.entry = small.get_submodule(block.entry)
        self.reader: Any = small.get_submodule(path)
        weight = lost.get_parameter(f"{path}.weight").detach()
        self.last: Tensor = weight if 0 in self.spec.inputs else weight.mT  # [lost, out]
        self.lost, self.outputs = map(int, self.last.size())
        self.width: int = self.reader.weight.shape[min(self.spec.inputs)]
        self.ahead = Ahead(lost, block, path, self.outputs, binding.family)

    @property
    def gone(self) -> float:
        return self.lost / (self.lost + self.width)

    def missed(self, args: Sequence[Any], kwargs: Mapping[str, Any], at: Int[Tensor, " token"] | slice) -> Tensor:
        """[token, out] What the lost channels would have said of some of the tokens that the smaller MLP was called with."""
        given = dict(kwargs)
        first = args[0] if args else given.pop("hidden_states")
        part = first.reshape(-1, first.shape[-1])[at].unsqueeze(0)
        # Besides its input an MLP is given only what is added to its output (BLOOM's residual), behind what is asked for here.
        rest = [torch.zeros_like(part) if isinstance(value, Tensor) else value for value in args[1:]]
        more = {n: torch.zeros_like(part) if isinstance(value, Tensor) else value for n, value in given.items()}
        return linear(self.ahead.read(part, rest, more)[0], self.last.mT)

    def corrected(self, correction: Correction, place: Tensor | None) -> Corrected:
        """The output matrix and the bias with the correction in them, in `place` if given."""
        weight = self.reader.weight.detach()
        keys, values = correction.keys, correction.values
        pair = (keys.mT, values) if 0 in self.spec.inputs else (values.mT, keys)
        bias = getattr(self.reader, "bias", None)
        shift = correction.shift if bias is None else correction.shift + bias.detach()
        new = torch.addmm(weight, *pair) if place is None else torch.addmm(weight, *pair, out=place)
        return (new.mT if 0 in self.spec.inputs else new), shift

    @property
    def bytes(self) -> int:
        """Of what is gathered from calibration text, and of solving it."""
        return 16 * self.width * (self.width + self.outputs)


class Learner:
    """What is known of one half, while text goes through it."""

    def __init__(self, half: Half, device: torch.device) -> None:
        self.half = half
        self.valid: Tensor | None = None
        self.moments = MomentsAccumulator(half.width, device)
        self.map = Regression(columns=half.width, parts=[half.outputs], intercept=True, device=device)

    def watch(self) -> list[Any]:
        """Hooks on the smaller layer."""
        entered: list[Tensor] = []

        def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[:] = [self.half.missed(args, kwargs, slice(None))]

        def reading(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            z, y = args[0].reshape(-1, args[0].shape[-1]), entered.pop()
            if self.valid is not None:
                z, y = z[self.valid], y[self.valid]
            self.moments.update(z)
            self.map.update(z, y, torch.zeros(len(z), dtype=torch.bool, device=z.device))

        return [
            self.half.entry.register_forward_pre_hook(entering, with_kwargs=True),
            self.half.reader.register_forward_pre_hook(reading),
        ]

    def known(self) -> Known:
        (fitted,) = self.map.solve(USUAL)
        moments = self.moments.result()
        return Known(
            mean=moments.mean.float(), scale=precision(moments.variance).float(),
            weight=fitted.change.mT.to(self.half.reader.weight.dtype).contiguous(), bias=fitted.intercept.float(),
        )  # fmt: skip


def _lost(layer: nn.Module, binding: Binding, stay: Sequence[int]) -> nn.Module:
    """A layer whose MLP has the channels that do not stay."""
    gone = tuple(sorted(set(range(binding.sizes["ffn"])) - set(stay)))
    lost = twin(layer)
    resize_layer(lost, binding.family, {**binding.sizes, "ffn": len(gone)})
    for name, spec in binding.layer.items():
        if spec.mentions("ffn"):
            owner, _, last = name.rpartition(".")
            weight = axes.select(layer.get_parameter(name).detach(), spec, binding.sizes, {"ffn": gone})
            setattr(lost.get_submodule(owner), last, nn.Parameter(weight, requires_grad=False))
    return lost


def check_plan(plan: Plan, binding: Binding) -> None:
    """Raises `UserError` for a plan of another model."""
    if (plan.model_type, len(plan.layers), plan.sizes) != (binding.model_type, binding.num_layers, binding.sizes):
        raise UserError(
            f"the plan is of a {plan.model_type} model with {len(plan.layers)} layers and the axes {dict(plan.sizes)}; the dense one "
            f"is {binding.model_type}, has {binding.num_layers} and {dict(binding.sizes)}. Give the model that the smaller one was "
            "pruned from."
        )


def halves(small: nn.Module, dense: nn.Module, plan: Plan, binding: Binding) -> list[Half]:
    """Those of layers that lost channels. Raises `UserError` where one model was not pruned from the other by the plan."""
    for model, role in ((small, "smaller"), (dense, "dense")):
        if model.training:
            raise UserError(f"the {role} model is in training mode. Call `model.eval()` first.")
    check_plan(plan, binding)
    few, many = (list(m.get_submodule(binding.family.layers)) for m in (small, dense))  # type: ignore[arg-type]
    if len(few) != len(plan.remaining):
        raise UserError(
            f"the smaller model has {len(few)} layers, and by the plan {len(plan.remaining)} stay. Give the plan that it was pruned by."
        )
    mine, its = next(small.parameters()), next(dense.parameters())
    if (mine.dtype, mine.device) != (its.dtype, its.device):
        raise UserError(
            f"the smaller model is {mine.dtype} on {mine.device}, and the dense one {its.dtype} on {its.device}. Load both alike."
        )
    found = []
    for layer, number in zip(few, plan.remaining, strict=True):
        stay: Any = plan.layers[number].get("ffn")
        if stay is not None and len(stay) < binding.sizes["ffn"]:
            found.append(Half(number, layer, _lost(many[number], binding, stay), binding))
    if wrong := next((half for half in found if half.width + half.lost != binding.sizes["ffn"]), None):
        raise UserError(
            f"layer {wrong.number} of the smaller model has {wrong.width} channels, and by the plan it lost {wrong.lost} of "
            f"{binding.sizes['ffn']}. Give the plan that it was pruned by."
        )
    return found
