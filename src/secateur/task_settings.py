"""What a person can choose of an evaluation on lm-eval's tasks, and which evaluation it is. Never imports torch."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from secateur.dynamic_settings import ProbedEvalSettings, Probing
from secateur.errors import UserError
from secateur.settings import Device, Dtype


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


Tasks = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed), Field(min_length=1)]


class TaskSettings(Probing):
    """An evaluation on tasks, of a probed model where `dynamic` or `small` is given: requests in batches of `batch`.

    `seq_len`: tokens of a calibration sequence.
    """

    alone: ClassVar[tuple[str, ...]] = (*Probing.alone, "seed", "seq_len")
    drawn: ClassVar[tuple[str, ...]] = (*Probing.drawn, "seq_len")

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    tasks: Tasks = Field(description="names of lm-eval's tasks, files or directories, such as boolq,piqa or rows.jsonl")
    limit: int | None = Field(default=None, ge=1, description="rows of each task, 1 or more")
    num_fewshot: int | None = Field(default=None, ge=0, description="a number of examples, from 0; None: the task's own")
    batch: int = Field(default=20, ge=1, description="a number of requests, 1 or more")
    seq_len: int = Field(default=128, ge=2, description="tokens of a calibration sequence, 2 or more")
    device: Device = "cpu"
    dtype: Dtype = "auto"
    trust_remote_code: bool = False


def settings_of(options: dict[str, Any]) -> TaskSettings | ProbedEvalSettings:
    """The settings of `secateur eval`: of tasks where any are named, else of a perplexity. An option of the other is refused."""
    tasks = options.get("tasks") is not None
    wanted, other = (TaskSettings, ProbedEvalSettings) if tasks else (ProbedEvalSettings, TaskSettings)
    kept = dict(options)
    for name in [name for name in options if name in other.model_fields and name not in wanted.model_fields]:
        value = kept.pop(name)
        if value is not None and value != other.model_fields[name].default:
            why = "with `tasks`: it says how a perplexity is measured" if tasks else "without `tasks`"
            raise UserError(f"{name} = {value!r} has no effect {why}. Leave out one of them.")
    return wanted(**kept)
