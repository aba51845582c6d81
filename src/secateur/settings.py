"""Everything a person can choose, checked once, before anything expensive starts. Never imports torch."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)  # fmt: skip
from pydantic_core import ErrorDetails

from secateur.errors import UserError
from secateur.registry import did_you_mean

Axis = Literal["kv", "ffn", "group"]
Dtype = Literal["auto", "bf16", "fp16", "fp32"]
Bos = Literal["auto", "none", "each"]
Effort = Literal["fast", "balanced", "best"]
Format = Literal["auto", "stock", "unequal", "gguf"]
Protocol = Literal["wikitext2@2048", "wikitext2@128", "ptb@128"]

COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BYTES = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("iB", 1024))
}  # fmt: skip


def parse_count(text: str) -> int:
    """A number of parameters: `5.5B`, `800M`, `7000000`."""
    return _quantity(text, COUNTS, "a number of parameters such as 5.5B, 800M or 7000000")


def parse_bytes(text: str) -> int:
    """A number of bytes: `2GiB` (powers of 1024), `900MB` (powers of 1000), `1048576`."""
    return _quantity(text, BYTES, "a size such as 2GiB (1024³), 900MB (1000²) or a plain number of bytes")


def spell_bytes(size: int) -> str:
    """A number of bytes in the largest unit that it has one of: `1.25 GiB`, `93.50 KiB`, `12 B`."""
    for unit, factor in reversed(BYTES.items()):
        if unit.endswith("iB") and size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def parse_layers(text: str, num_layers: int) -> frozenset[int]:
    """Layer numbers from a list of numbers and inclusive ranges, `0-2,-1`; negative numbers count from the last layer."""
    chosen: set[int] = set()
    for first, last in _layer_ranges(text):
        for number in (first, last):
            if not -num_layers <= number < num_layers:
                raise UserError(
                    f"layer {number} of {text!r} does not exist: the model has {num_layers} layers. Allowed are 0 to "
                    f"{num_layers - 1}, or -1 to -{num_layers} counted from the last. Name layers in that range."
                )
        start, stop = first % num_layers, last % num_layers
        if start > stop:
            raise UserError(
                f"the range {first}-{last} of {text!r} runs backwards: {start} to {stop} in a model of {num_layers} layers. "
                f"A range goes from the lower to the higher layer: write it the other way round."
            )
        chosen.update(range(start, stop + 1))
    return frozenset(chosen)


def _layer_ranges(text: str) -> list[tuple[int, int]]:
    ranges = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?", part)
        if not found:
            raise UserError(
                f"{part!r} of {text!r} is not a layer or a range of layers. Allowed are numbers and inclusive ranges separated "
                f"by commas, negative numbers counting from the last layer: write for example `0-2,-1`."
            )
        ranges.append((int(found[1]), int(found[2] or found[1])))
    return ranges


def _quantity(text: str, units: dict[str, int], allowed: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factors = {unit.lower(): factor for unit, factor in units.items()}
    if not found or found[2].lower() not in factors or (value := round(float(found[1]) * factors[found[2].lower()])) < 1:
        known = ", ".join(unit for unit in units if unit)
        raise UserError(f"{text!r} is not {allowed}. Units: {known}. Give a number above 0, with one of them or without.")
    return value


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _distinct(value: tuple[Axis, ...]) -> tuple[Axis, ...]:
    if len(set(value)) != len(value) or not value:
        raise UserError(
            f"axes = {','.join(value)!r} is not allowed: they must be one or more of {', '.join(get_args(Axis))}, each once. "
            f"Change them and run again."
        )
    return value


def _checked_by(parse: Callable[[str], Any]) -> AfterValidator:
    def check(text: str, info: Any) -> str:  # a ValidationInfo, which is a protocol that a test cannot check at run time
        try:
            parse(text)
        except UserError as error:
            raise UserError(f"{info.field_name}: {error}") from None
        return text

    return AfterValidator(check)


FilePath = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
Count = Annotated[str, _checked_by(parse_count)]
Size = Annotated[str, _checked_by(parse_bytes)]
Layers = Annotated[str, _checked_by(_layer_ranges)]
Axes = Annotated[tuple[Axis, ...], BeforeValidator(_split), AfterValidator(_distinct)]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N")]


class Settings(BaseModel):
    """Strict and frozen; a value that is not allowed is a `UserError` that names the setting, the value and what is allowed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = [_told(type(self), problem) for problem in error.errors(include_url=False)]
            raise UserError(" ".join(problems)) from None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class PruneSettings(Settings):
    """One pruning job. Exactly one of `ratio`, `target_params` and `target_size` says how much leaves."""

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    out: FilePath | None = Field(default=None, description="the directory to write")
    ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="the fraction of all transformer-block parameters that leave, above 0 and below 1",
    )
    target_params: Count | None = Field(default=None, description="parameters of the pruned model, such as 5.5B")
    target_size: Size | None = Field(default=None, description="bytes of the pruned model's weights, such as 9GiB")
    method: str | None = Field(default=None, min_length=1, description="a criterion or a recipe; None: what `effort` chooses")
    effort: Effort | None = Field(default=None, description="None: `balanced`, unless a method is given")
    gradient: str | None = Field(
        default=None, min_length=1, description="a gradient estimator; None: the method's own, or `backprop`"
    )
    compensate: str | None = Field(default=None, min_length=1, description="None: the method's own, or `least-squares`")
    allocation: str | None = Field(default=None, description="None: the method's own, or `uniform`")
    calibration: str | None = Field(default=None, description="a text file or a preset")
    evaluation: str | None = Field(default=None, description="a text file, a preset, or `none`")
    allow_overlap: bool = False
    samples: int = Field(default=128, ge=1, description="a number of calibration sequences, 1 or more")
    seq_len: int = Field(default=128, ge=2, description="tokens of a sequence, 2 or more")
    seed: int = Field(default=0, ge=0, lt=2**63, description="an integer from 0")
    protect: Layers | None = Field(default=None, description="layers that stay whole, such as 0-2,-1; None: the method's own")
    axes: Axes | None = Field(
        default=None, description=f"one or more of {', '.join(get_args(Axis))}; None: the method's own, or kv,ffn"
    )
    round_to: int = Field(default=1, ge=1, description="a whole number, 1 or more, that every width is a multiple of")
    format: Format = "auto"
    ridge: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="a number from 0, relative to the mean of the Gram diagonal"
    )
    max_memory: Size | None = Field(default=None, description="a size such as 2GiB")
    device: Device = "cpu"
    dtype: Dtype = "auto"
    run_dir: FilePath | None = Field(default=None, description="a directory for the journal and the statistics")
    resume: bool = False
    force: bool = False
    push_to_hub: str | None = Field(
        default=None, min_length=1, description="the hub id to publish the result under, OWNER/NAME"
    )
    private: bool = False
    dry_run: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _whole(self) -> "PruneSettings":
        targets = {name: getattr(self, name) for name in ("ratio", "target_params", "target_size")}
        given = [f"{name} = {value!r}" for name, value in targets.items() if value is not None]
        if len(given) != 1:
            raise UserError(
                f"{' and '.join(given) or 'no target'} was given. Exactly one of {', '.join(targets)} says how much leaves: "
                f"give a ratio such as 0.3, or a number of parameters such as 5.5B, or a size such as 9GiB."
            )
        if self.out is None and not self.dry_run:
            raise UserError(
                "no output directory was given. Say where the pruned checkpoint goes with `out`, or ask for a `dry_run`."
            )
        if self.method is not None and self.effort is not None:
            raise UserError(
                f"method = {self.method!r} and effort = {self.effort!r} were given, and an effort is a choice of method. Give one "
                f"of them."
            )
        if self.allow_overlap and self.evaluation == "none":
            raise UserError(
                "allow_overlap has no effect with evaluation = 'none': nothing is evaluated. Leave one of them out."
            )
        if self.private and self.push_to_hub is None:
            raise UserError("private = True has no effect without push_to_hub: nothing is published. Give both, or neither.")
        return self


class EvalSettings(Settings):
    """One perplexity measurement: non-overlapping windows of `seq_len` tokens, at most `max_tokens` of them.

    `protocol` stands for the `text`, unless one is given, the `seq_len` and the `bos` of published figures.
    """

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    protocol: Protocol | None = None
    text: str | None = Field(default=None, description="a text file or a preset")
    seq_len: int = Field(default=128, ge=2, description="tokens of a window, 2 or more")
    max_tokens: int | None = Field(default=None, ge=2, description="a number of tokens, 2 or more")
    bos: Bos = "auto"
    max_memory: Size | None = Field(default=None, description="a size such as 2GiB")
    device: Device = "cpu"
    dtype: Dtype = "auto"
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        """A protocol's name is its text and its length; its text begins as the tokenizer begins one."""
        name = values.get("protocol") if isinstance(values, dict) else None
        if name is None or name not in get_args(Protocol):
            return values
        text, _, length = name.partition("@")
        fixed = {"seq_len": int(length), "bos": "auto"}
        for field, value in fixed.items():
            given = values.get(field, value)
            if given not in (value, cls.model_fields[field].default):
                raise UserError(f"protocol = {name!r} has {field} = {value!r}, and {given!r} was given. Leave out one of them.")
        return {**values, **fixed, "text": values.get("text") or text}


def _told(settings: type[Settings], problem: ErrorDetails) -> str:
    """One problem that pydantic found: what was given, what is allowed, what to do."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    name = str(problem["loc"][0])
    known = settings.model_fields
    if kind == "extra_forbidden":
        return f"unknown setting {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
    if kind == "missing":
        return f"the setting {name!r} is missing. Give {known[name].description}."
    if allowed := context.get("expected"):
        hint = did_you_mean(str(given), re.findall(r"'([^']*)'", allowed))
        return f"{name} = {given!r} is not allowed.{hint} Choose {allowed}."
    allowed = known[name].description or problem["msg"].removeprefix("Input should be ")
    return f"{name} = {given!r} is not allowed: it must be {allowed}. Change it and run again."
