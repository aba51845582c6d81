"""What a person can choose of a study or a comparison: many prunings of one model on the same texts. Never imports torch."""

import re
from collections.abc import Callable
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from secateur.errors import UserError
from secateur.registry import did_you_mean
from secateur.settings import Device, Dtype, Effort, FilePath, PruneSettings, Settings

CHOICES = ("gradient", "compensate", "allocation", "axes", "protect", "ridge")
EXAMPLE = "flap[compensate=bias,allocation=global]"


def parse_entry(text: str) -> dict[str, Any]:
    """The pruning settings of one entry of `--methods`: `method` or `method[choice=value,choice=value]`.

    An effort (`best`) stands in the place of a method.
    A comma separates two choices where the name of a choice and `=` follow, so that a value may hold commas of its own. Raises
    `UserError` for anything else, and for a value that `secateur prune` would not take.
    """
    found = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]+)\])?", text)
    if not found:
        raise UserError(f"{text!r} is not a method with its choices. Write it as {EXAMPLE}, or as flap alone.")
    settings: dict[str, Any] = {"effort" if found[1] in get_args(Effort) else "method": found[1]}
    for part in re.split(rf",(?=(?:{'|'.join(CHOICES)})=)", found[2]) if found[2] else []:
        name, equals, value = part.partition("=")
        if not equals or name not in CHOICES:
            raise UserError(
                f"{part!r} of {text!r} is not a choice.{did_you_mean(name, CHOICES)} Known: {', '.join(CHOICES)}. "
                f"Write them as {EXAMPLE}."
            )
        if name in settings:
            raise UserError(f"the choice {name!r} is given twice in {text!r}. Give it once.")
        settings[name] = _number(value) if name == "ridge" else value
    try:
        PruneSettings(model="any", ratio=0.5, dry_run=True, **settings)
    except UserError as error:
        raise UserError(f"{text!r}: {error}") from None
    return settings


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # for the settings to refuse


def _once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) != len(value):
        raise UserError(f"{', '.join(map(str, value))}: one of these is given twice. Give each once.")
    return value


def _some_text(value: str | None) -> str | None:
    if value == "none":
        raise UserError(
            "a study or comparison measures perplexity, and the text for it is given as 'none'. Give a text file or a preset."
        )
    return value


def _listed(kind: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Numbers from text such as `0.2,0.4`."""
    return lambda value: tuple(map(kind, value.split(","))) if isinstance(value, str) else value


def _entries(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        parse_entry(text)
    return value


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(value.split()) if isinstance(value, str) else value),
    Field(min_length=1),
    AfterValidator(_once),
]
Ratios = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(_listed(float)), Field(min_length=1), AfterValidator(_once)
]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(_listed(int)), Field(min_length=1), AfterValidator(_once)
]


class SeriesSettings(Settings):
    """What all studies and comparisons have in common."""

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    out: FilePath = Field(description="the directory to write")
    ratios: Ratios = Field(
        default=(0.2, 0.4, 0.5), description="fractions that leave, each above 0 and below 1, such as 0.2,0.4"
    )
    seeds: Seeds = Field(default=(0, 1, 2), description="integers from 0, such as 0,1,2")
    calibration: str | None = Field(default=None, description="a text file or a preset")
    evaluation: Annotated[str | None, AfterValidator(_some_text)] = Field(default=None, description="a text file or a preset")
    allow_overlap: bool = False
    samples: int = Field(default=128, ge=1, description="a number of calibration sequences, 1 or more")
    seq_len: int = Field(default=128, ge=2, description="tokens of a sequence, 2 or more")
    device: Device = "cpu"
    dtype: Dtype = "auto"


class StudySettings(SeriesSettings):
    """One study of gradient estimators. `estimators` as `--gradient` takes them; None: all."""

    estimators: Names | None = Field(
        default=None, description="estimators separated by spaces, such as backprop spsa-gates:n=64"
    )


class CompareSettings(SeriesSettings):
    """One comparison of methods. `methods` as `parse_entry` takes them."""

    methods: Annotated[Names, AfterValidator(_entries)] = Field(
        description=f"methods separated by spaces, such as `magnitude {EXAMPLE}`"
    )
