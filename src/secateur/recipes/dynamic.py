"""What every job with a probed model begins with: the model in memory whole, and what it knows before the first batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur import axes
from secateur.calibration.blocks import Blocks, draw_blocks
from secateur.calibration.tokens import Tokens, check_vocabulary
from secateur.dynamic_settings import Probing
from secateur.errors import UserError
from secateur.export.load import load, load_pruned, read_plan
from secateur.recipes.opening import check_length, open_device, open_model
from secateur.runtime.history import History
from secateur.runtime.model import Probed
from secateur.runtime.probe_pruning import ProbePruning
from secateur.runtime.probe_refit import Known
from secateur.runtime.refit_half import check_plan
from secateur.runtime.refit_state import RefitState
from secateur.runtime.refitted import Refitted
from secateur.runtime.state import State
from secateur.runtime.widths import Widths
from secateur.streaming.checkpoint import Checkpoint

Dynamic = Probed | Refitted


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A checkpoint that was looked at, to be loaded whole once everything else is known to be in order."""

    source: Checkpoint
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool

    @classmethod
    def open(cls, spec: str, *, dtype: str, device: str, trust_remote_code: bool) -> "Whole":
        """The checks and the arithmetic of `open_model`."""
        place = open_device(device)
        source, chosen = open_model(spec, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return cls(source=source, dtype=chosen, device=place, trust_remote_code=trust_remote_code)

    def load(self) -> Any:
        model = load(self.source.directory, dtype=self.dtype, device=self.device, trust_remote_code=self.trust_remote_code)
        return model.requires_grad_(False)

    def leaves(self, settings: Probing) -> bool:
        """Whether anything leaves at this ratio, which may be 0 or less than one unit; or has left the smaller model. Raises
        `UserError` for a ratio too large, and for what is no model pruned from this one."""
        if settings.small is not None:
            plan = read_plan(settings.small)
            check_plan(plan, self.source.binding)
            return any("ffn" in kept for kept in plan.layers)
        assert settings.dynamic is not None
        widths = Widths.of(self.source.binding, method(settings), settings.dynamic)
        return widths.heads is not None or widths.ffn is not None

    def learns(self, settings: Probing) -> bool:
        """Whether it must know of its channels what a calibration or a state says."""
        return self.leaves(settings) and (settings.small is not None or method(settings).history != "none")

    def probed(self, settings: Probing, *, rechoose: int | None = None) -> Dynamic:
        """Load the model, probed. Raises `UserError` for one whose layers are unequal."""
        if settings.small is not None:
            options = {"dtype": self.dtype, "device": self.device, "trust_remote_code": self.trust_remote_code}
            small, plan = load_pruned(settings.small, **options)
            return Refitted(small.requires_grad_(False), self.load(), plan, memory=settings.memory)
        assert settings.dynamic is not None
        return Probed(
            self.load(), ratio=settings.dynamic, how=method(settings), memory=settings.memory, rechoose=rechoose
        )  # fmt: skip


def method(settings: Probing) -> ProbePruning:
    """The serving form, the published one, which updates its history as it goes, or GRIFFIN."""
    if settings.griffin:
        return ProbePruning.griffin()
    if settings.paper:
        return ProbePruning.paper(attention=settings.attention or "heads")
    return ProbePruning(attention=settings.attention or "kv")


def draw(tokens: Tokens, settings: Probing, *, seq_len: int, source: Checkpoint) -> Blocks:
    """The calibration blocks, as `secateur prune` draws them."""
    check_length(source.binding, seq_len)
    blocks = draw_blocks(tokens, samples=settings.samples, seq_len=seq_len, seed=settings.seed)
    check_vocabulary(blocks.ids, source.binding.sizes["vocab"])
    return blocks


def read_state(settings: Probing) -> State | RefitState:
    """The saved state, of the kind that is asked for."""
    assert settings.state is not None
    return State.load(settings.state) if settings.small is None else RefitState.load(settings.state)


def restore(model: Dynamic, state: State | RefitState, path: Path) -> str:
    """Give the model the state in a file, and say so. Raises `UserError` for one of another model or method."""
    if isinstance(model, Refitted):
        assert isinstance(state, RefitState)
        for half in model.halves:
            known = state.known.get(half.number)
            if known is None or tuple(known.weight.shape) != (half.width, half.outputs):
                has = "none" if known is None else f"a map of {list(known.weight.shape)}"
                raise UserError(
                    f"{path} is not of this smaller model: of layer {half.number} it has {has}, and {[half.width, half.outputs]} is "
                    "needed. Give the state that was saved with it, or calibrate anew without --state."
                )
        model.state = RefitState(known={i: Known(*(t.to(model.device) for t in k)) for i, k in state.known.items()})
        return f"the state in {path.name}"
    assert isinstance(state, State)
    for part, channels in _channels(model).items():
        for layer in range(model.how.keep_first, model.binding.num_layers):
            found = state.histories.get((layer, part))
            if found is None or found.square.shape[1] != channels:
                has = "none" if found is None else f"{found.square.shape[1]:,} channels"
                raise UserError(
                    f"{path} is not of this model and method: of layer {layer}'s {part} it has {has}, and {channels:,} channels are "
                    f"read there. Give the state that was saved with them, or calibrate anew without --state."
                )
            if found.positional != (model.how.history == "position"):
                made, wanted = ("with", "without") if found.positional else ("without", "with")
                raise UserError(f"{path} was made {made} --paper, and this is {wanted} it. Save a state for each of the two.")
    moved = {key: History.of({n: t.to(model.device) for n, t in h.tensors().items()}) for key, h in state.histories.items()}
    model.state = State(histories=moved, online=model.how.ema is not None)
    return f"the state in {path.name}"


def kept(model: Dynamic) -> dict[str, dict[str, int]]:
    """Units that stay in each pruned layer, and of how many, by the name of their axis; of a smaller model, the MLP channels of all
    layers that lost some."""
    if isinstance(model, Refitted):
        stay = sum(half.width for half in model.halves)
        return {"ffn": {"kept": stay, "of": stay + sum(half.lost for half in model.halves)}}
    sizes, found = model.binding.sizes, {}
    groups = sizes.get("group", 1)
    heads = {"kv": sizes["kv"], "group": groups, "heads": sizes["kv"] * groups, "none": 0}[model.how.attention]
    if heads:
        found[model.how.attention] = {"kept": heads if model.widths.heads is None else model.widths.heads, "of": heads}
    if model.how.mlp:
        found["ffn"] = {"kept": sizes["ffn"] if model.widths.ffn is None else model.widths.ffn, "of": sizes["ffn"]}
    return found


def _channels(model: Probed) -> dict[str, int]:
    """Channels that the output matrix of each pruned half reads."""
    wanted = {"attention": ("kv", model.widths.heads), "mlp": ("ffn", model.widths.ffn)}
    found = {}
    for part, (axis, width) in wanted.items():
        if width is not None:
            ((_, spec),) = model.binding.readers(axis).items()
            found[part] = axes.shape(spec, model.binding.sizes)[min(spec.inputs)]
    return found
