"""What a person can choose of a model that is pruned anew for each batch: to generate, to evaluate, to time. Never imports torch."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from secateur.errors import UserError
from secateur.settings import Device, Dtype, EvalSettings, FilePath, Settings

Attention = Literal["kv", "group", "heads", "none"]
Memory = Literal["kept", "low"]


def _listed(value: Any) -> Any:
    """Whole numbers from text such as `1,4,20`; what is none of these is left for the settings to refuse."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return tuple(dict.fromkeys(int(part) if part.isdecimal() else part for part in parts))
    return tuple(value) if isinstance(value, list) else value


Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed), Field(min_length=1)]
Others = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: () if value is None else tuple(value) if isinstance(value, list) else value),
]
Prompts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
]


class Probing(Settings):
    """How a model is made smaller for each batch, and what it knows before the first: a saved state, or what it is calibrated on.

    `dynamic`: each batch chooses what it keeps; `small`: it corrects a pruned model. An option that would have no effect is
    refused: those in `alone` without either, those in `choosing` with `small`, those in `drawn` beside a `state`.
    """

    alone: ClassVar[tuple[str, ...]] = ("state", "calibration", "samples", "attention", "paper", "griffin", "memory")
    choosing: ClassVar[tuple[str, ...]] = ("attention", "paper", "griffin")
    drawn: ClassVar[tuple[str, ...]] = ("calibration", "samples", "seed")

    dynamic: float | None = Field(
        default=None, ge=0, lt=1, allow_inf_nan=False,
        description="the fraction of the blocks' parameters that each batch leaves out, from 0 and below 1",
    )  # fmt: skip
    small: str | None = Field(default=None, min_length=1, description="a directory that `secateur prune` wrote from the model")
    state: FilePath | None = Field(default=None, description="a file that --save-state or `state.save(path)` wrote")
    calibration: str | None = Field(default=None, description="a text file or a preset")
    samples: int = Field(default=128, ge=1, description="a number of calibration sequences, 1 or more")
    seed: int = Field(default=0, ge=0, lt=2**63, description="an integer from 0")
    attention: Attention | None = Field(default=None, description="None: `kv`, or `heads` with `paper`, `none` with `griffin`")
    paper: bool = False
    griffin: bool = False
    memory: Memory = "kept"

    @model_validator(mode="after")
    def _in_effect(self) -> "Probing":
        if self.dynamic is not None and self.small is not None:
            raise UserError(
                f"dynamic = {self.dynamic} and small = {self.small!r} were given. Give one of them: the fraction that each batch "
                "leaves out, or a pruned model that each batch corrects."
            )
        if self.dynamic is None and self.small is None:
            why = "without `dynamic`, the fraction that each batch leaves out, or `small`, a pruned model that it corrects"
            self._refuse(self.alone, why, "Give one of them too")
        elif self.small is not None:
            self._refuse(self.choosing, "with `small`, whose heads and channels are chosen already", "Leave out small")
        if self.griffin:
            self._refuse(
                ("state", *self.drawn), "with `griffin`, which the batch alone tells what to keep", "Leave out griffin"
            )
            if self.paper or self.attention not in (None, "none"):
                other = "paper = True" if self.paper else f"attention = {self.attention!r}"
                raise UserError(
                    f"griffin prunes MLP channels by its own rule, and {other} was given with it. Leave out one of them."
                )
        elif self.state is not None and self.probes:
            self._refuse(self.drawn, f"with state = {str(self.state)!r}, which is calibrated already", "Leave out the state")
        return self

    @property
    def probes(self) -> bool:
        """Whether batches have a say in the model."""
        return self.dynamic is not None or self.small is not None

    def _refuse(self, names: tuple[str, ...], why: str, advice: str) -> None:
        for name in names:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                shown = str(value) if name in ("state", "save_state") else value
                raise UserError(f"{name} = {shown!r} has no effect {why}. {advice}, or leave out {name}.")


class GenerateSettings(Probing):
    """Greedy continuations of prompts, which make one batch. `seq_len`: tokens of a calibration sequence."""

    alone: ClassVar[tuple[str, ...]] = (*Probing.alone, "seed", "seq_len", "save_state", "rechoose")
    choosing: ClassVar[tuple[str, ...]] = (*Probing.choosing, "rechoose")
    drawn: ClassVar[tuple[str, ...]] = (*Probing.drawn, "seq_len", "save_state")

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    prompt: Prompts = Field(description="a text that is not empty, or several")
    max_new_tokens: int = Field(default=64, ge=1, description="a number of tokens, 1 or more")
    seq_len: int = Field(default=128, ge=2, description="tokens of a calibration sequence, 2 or more")
    save_state: FilePath | None = Field(default=None, description="a file to write")
    rechoose: int | None = Field(default=None, ge=1, description="a number of tokens, 1 or more")
    device: Device = "cpu"
    dtype: Dtype = "auto"
    trust_remote_code: bool = False


class ProbedEvalSettings(Probing, EvalSettings):
    """A perplexity measurement, of a probed model where `dynamic` is given: windows in batches of `batch`."""

    alone: ClassVar[tuple[str, ...]] = (*Probing.alone, "seed", "batch", "allow_overlap")
    drawn: ClassVar[tuple[str, ...]] = (*Probing.drawn, "allow_overlap")

    batch: int = Field(default=20, ge=1, description="a number of windows, 1 or more")
    allow_overlap: bool = False

    @model_validator(mode="after")
    def _not_streamed(self) -> "ProbedEvalSettings":
        if self.probes and self.max_memory is not None:
            raise UserError(
                f"max_memory = {self.max_memory!r} has no effect with `dynamic` or `small`: such a model is in memory "
                "whole. Leave it out, and give memory = 'low' for a smaller peak."
            )
        return self

    def plain(self) -> EvalSettings:
        """What `secateur eval` was always given."""
        return EvalSettings(**{name: getattr(self, name) for name in EvalSettings.model_fields})


class BenchSettings(Probing):
    """Times of a model, against other checkpoints and itself probed, for every batch size and length."""

    alone: ClassVar[tuple[str, ...]] = (*Probing.alone, "rechoose")
    choosing: ClassVar[tuple[str, ...]] = (*Probing.choosing, "rechoose")

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    others: Others = Field(default=(), description="directories with checkpoints, or hub ids")
    batch: Sizes = Field(default=(1, 4, 20), description="numbers of sequences, each 1 or more, such as 1,4,20")
    seq_len: Sizes = Field(default=(16, 128, 512), description="numbers of tokens, each 1 or more, such as 16,128,512")
    new_tokens: int = Field(default=64, ge=0, description="a number of tokens to decode, or 0 for none")
    runs: int = Field(default=5, ge=1, description="a number of runs that are timed, 1 or more")
    samples: int = Field(default=8, ge=1, description="a number of calibration sequences, 1 or more")
    rechoose: int | None = Field(default=None, ge=1, description="a number of tokens, 1 or more")
    device: Device = "cpu"
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
