"""What the report reads of a record, checked: keys it does not know are let be, and what is damaged is a `UserError`.

Imports no torch.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur.errors import UserError
from secateur.records import Record
from secateur.reporting.kept import AXES

T = TypeVar("T", bound="Facts")


class Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @classmethod
    def read(cls: type[T], record: Record, part: Literal["result", "figures", "environment"] = "result") -> T:
        """Raises `UserError` that names the record and what is wrong in it."""
        try:
            return cls.model_validate(getattr(record, part))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, (part, *first["loc"])))
            shown = repr(first["input"])[:60]
            raise UserError(
                f"{record.origin} is damaged: `{place}` is {shown}, and {first['msg'][:1].lower()}{first['msg'][1:]}. Run its command "
                f"again."
            ) from None


class ReloadedFacts(Facts):
    how: str
    tokens: int
    error: float
    greedy: int

    @property
    def told(self) -> str:
        said = f", the same {self.greedy} tokens said next" if self.greedy else ""
        return (
            f"{self.how}: logits of {self.tokens} tokens within {self.error:.1e} of the original's, dropped units masked{said}"
        )


class PruneFacts(Facts):
    method: str
    compensate: str
    allocation: str | None = None
    ratio: float
    ratio_reached: float
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    perplexity_stderr_before: float | None = None
    perplexity_stderr_after: float | None = None
    loss_rise: float | None = None
    loss_rise_stderr: float | None = None
    evaluation: str | None = None
    calibration: str
    overlap: dict[str, Any] | None = None
    gradient: dict[str, Any] | None = None
    stock: bool
    load: str | None = None
    notes: list[str] = []
    verified: float
    reloaded: ReloadedFacts | None = None
    seconds: float
    peak_memory_bytes: int | None = None


class AxisFacts(Facts):
    units: int = Field(ge=1)
    parameters: int


class CostFacts(Facts):
    layer: int
    axis: str
    left: int
    of: int
    parameters: int
    share: float | None = None
    loss: float | None = None


class HistogramFacts(Facts):
    kept: list[int]
    left: list[int]
    quantiles: list[float] = []


class ScoreFacts(Facts):
    scale: Literal["log", "linear"]
    edges: list[float] = Field(min_length=2)
    layers: list[HistogramFacts | None]

    @model_validator(mode="after")
    def _ascending(self) -> "ScoreFacts":
        known = all(map(math.isfinite, self.edges)) and all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if not known or (self.scale == "log" and self.edges[0] <= 0):
            raise ValueError("the edges must ascend, and be above 0 on a logarithmic scale")
        return self


class FigureFacts(Facts):
    """What a pruning decided. All empty for a record without figures."""

    axes: dict[str, AxisFacts] = {}
    layers: list[dict[str, int] | None] = []
    layer_parameters: int = 0
    costs: list[CostFacts] = []
    scores: dict[str, ScoreFacts] = {}
    influence: list[float] | None = None

    @field_validator("axes", "scores")
    @classmethod
    def _in_order(cls, found: dict[str, Any]) -> dict[str, Any]:
        """As the model's layers have them: attention first. A file's order says nothing."""
        known = list(AXES)
        return dict(sorted(found.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known)))

    @model_validator(mode="after")
    def _whole(self) -> "FigureFacts":
        for layer, kept in enumerate(self.layers):
            for axis, stays in (kept or {}).items():
                if axis not in self.axes or not 0 <= stays <= self.axes[axis].units:
                    raise ValueError(f"layer {layer} keeps {stays} of axis {axis!r}, which is not among its units")
        return self


class EvalFacts(Facts):
    perplexity: float
    loss: float
    stderr: float | None = None
    protocol: str
    seconds: float
    peak_memory_bytes: int | None = None
    calibration: str | None = None


class TaskFacts(Facts):
    task: str
    metric: str
    value: float | str | None
    stderr: float | None = None
    shots: int | None = None
    examples: int | None = None


class TasksFacts(Facts):
    tasks: list[TaskFacts]
    seconds: float
    peak_memory_bytes: int | None = None
    calibration: str | None = None


class TimedModel(Facts):
    model: str
    parameters: int | None = None
    parameter_bytes: int | None = None
    peak_memory_bytes: int | None = None


class TimedCell(Facts):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    batch: int
    seq_len: int
    phase: str
    model: str
    seconds: float
    seconds_least: float
    seconds_most: float
    tokens_per_second: float
    runs: int | None = None
    speedup: float | None = None
    speedup_least: float | None = None
    speedup_most: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None

    def each_token(self, count: int) -> "TimedCell":
        """Seconds of one decoded token of each sequence: two commands may have decoded different numbers of them."""
        seconds = {name: getattr(self, name) / count for name in ("seconds", "seconds_least", "seconds_most")}
        return self.model_copy(update={**seconds, "phase": f"{self.phase} per token"})

    @property
    def speedup_ends(self) -> tuple[float | None, float | None]:
        """Between which the median lies; least and most where that was not recorded."""
        known = self.speedup_low is not None and self.speedup_high is not None
        return (self.speedup_low, self.speedup_high) if known else (self.speedup_least, self.speedup_most)


class BenchFacts(Facts):
    """Of `bench`, and of the demonstration, which times its two models as well."""

    models: list[TimedModel] = []
    cells: list[TimedCell]
    not_faster: list[str] = []
    advice: list[str] = []
    runs: int | None = None
    new_tokens: int | None = None
    peak_memory: str | None = None
    calibration: str | None = None
    hardware: dict[str, Any] = {}


class ComparedCell(Facts):
    entry: str
    ratio: float
    seed: int
    ratio_reached: float | None = None
    perplexity: float | None = None
    parameters: int | None = None
    seconds: float | None = None
    refused: str | None = None


class CompareFacts(Facts):
    model: str
    perplexity_before: float
    parameters_before: int | None = None
    evaluation: str
    cells: list[ComparedCell]


class StudyRow(Facts):
    method: str
    gradient: str | None = None
    seed: int
    spearman: dict[str, float | None] = {}
    cosine: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    perplexity: dict[str, dict[str, float]] = {}


class StudyFacts(Facts):
    model: str
    perplexity_before: float
    evaluation: str
    rows: list[StudyRow]


class AgreementFacts(Facts):
    tokens: int
    top_1: float
    perplexity_hugging_face: float
    perplexity_llama_cpp: float


class ExportFacts(Facts):
    out: str
    architecture: str
    dtype: str
    bytes: int
    agreement: AgreementFacts | None = None


class CompletionFacts(Facts):
    prompt: str
    text: str
    new_tokens: int


class GenerateFacts(Facts):
    completions: list[CompletionFacts]
    tokens_per_second: float
    calibration: str | None = None


READ: Mapping[str, type[Facts]] = {
    "prune": PruneFacts, "bench": BenchFacts, "demo": BenchFacts, "compare": CompareFacts, "study gradients": StudyFacts,
    "export": ExportFacts, "generate": GenerateFacts,
}  # fmt: skip


def check(record: Record) -> None:
    """Read all that the report would. Raises `UserError` for a record that is damaged."""
    FigureFacts.read(record, "figures")
    facts = (TasksFacts if "tasks" in record.result else EvalFacts) if record.verb == "eval" else READ.get(record.verb)
    if facts is not None:
        facts.read(record)
