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
from secateur.export.load import load
from secateur.recipes.opening import check_length, open_device, open_model
from secateur.runtime.history import History
from secateur.runtime.model import Probed
from secateur.runtime.probe_pruning import ProbePruning
from secateur.runtime.state import State
from secateur.runtime.widths import Widths
from secateur.streaming.checkpoint import Checkpoint


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
        """Whether anything leaves at this ratio, which may be 0 or less than one unit. Raises `UserError` for one too large."""
        assert settings.dynamic is not None
        widths = Widths.of(self.source.binding, method(settings), settings.dynamic)
        return widths.heads is not None or widths.ffn is not None

    def learns(self, settings: Probing) -> bool:
        """Whether it must know of its channels what a calibration or a state says."""
        return self.leaves(settings) and method(settings).history != "none"

    def probed(self, settings: Probing, *, rechoose: int | None = None) -> Probed:
        """Load the model, probed. Raises `UserError` for one whose layers are unequal."""
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


def restore(model: Probed, state: State, path: Path) -> str:
    """Give the model the state in a file, and say so. Raises `UserError` for one of another model or method."""
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


def kept(model: Probed) -> dict[str, dict[str, int]]:
    """Units that stay in each pruned layer, and of how many, by the name of their axis."""
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
