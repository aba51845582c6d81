"""Options of the functions in `secateur.api`, for type checkers. Never imports torch."""

from os import PathLike
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from secateur.dynamic_settings import Attention
    from secateur.export_settings import FileType
    from secateur.runtime.model import Memory
    from secateur.settings import Axis, Bos, Dtype, Effort, Format, Protocol


class PruneOptions(TypedDict, total=False):
    """The fields of `secateur.settings.PruneSettings`, all with a default but one of the three that say how much leaves."""

    out: str | PathLike[str] | None
    ratio: float | None
    target_params: str | None
    target_size: str | None
    method: str | None
    effort: "Effort | None"
    gradient: str | None
    compensate: str | None
    allocation: str | None
    calibration: str | None
    evaluation: str | None
    allow_overlap: bool
    samples: int
    seq_len: int
    seed: int
    protect: str | None
    axes: "str | tuple[Axis, ...] | None"
    round_to: int
    format: "Format"
    ridge: float | None
    max_memory: str | None
    device: str
    dtype: "Dtype"
    run_dir: str | PathLike[str] | None
    resume: bool
    force: bool
    push_to_hub: str | None
    private: bool
    trust_remote_code: bool


class ProbingOptions(TypedDict, total=False):
    """The fields of `secateur.dynamic_settings.Probing`: for a checkpoint that is probed."""

    dynamic: float | None
    small: str | PathLike[str] | None
    state: str | PathLike[str] | None
    attention: "Attention | None"
    paper: bool
    griffin: bool
    memory: "Memory"
    calibration: str | None
    samples: int
    seed: int


class EvalOptions(ProbingOptions, total=False):
    """The fields of `secateur.dynamic_settings.ProbedEvalSettings`, all with a default."""

    protocol: "Protocol | None"
    text: str | None
    seq_len: int
    max_tokens: int | None
    bos: "Bos"
    max_memory: str | None
    device: str
    dtype: "Dtype"
    trust_remote_code: bool
    batch: int
    allow_overlap: bool


class TaskOptions(ProbingOptions, total=False):
    """The fields of `secateur.task_settings.TaskSettings`, all with a default; only the first three are for a model in memory."""

    limit: int | None
    num_fewshot: int | None
    batch: int
    device: str
    dtype: "Dtype"
    trust_remote_code: bool
    seq_len: int


class ExportOptions(TypedDict, total=False):
    """The fields of `secateur.export_settings.ExportSettings` besides the model and the kind of file, all with a default."""

    out: str | PathLike[str] | None
    dtype: "FileType"
    tokenizer: bool
    check: bool
    text: str | None
    check_tokens: int
    force: bool
    trust_remote_code: bool
