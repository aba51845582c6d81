"""Hub data sets: `hub:NAME?config=...&split=...&column=...&first=N&revision=...`.

NAME is an id on the Hugging Face hub, or a local directory laid out like one. Without `first` the data set is downloaded
once and cached; with it, only the first N rows are streamed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from secateur.calibration.rows import Row
from secateur.errors import UserError
from secateur.registry import did_you_mean

KEYS = ("config", "split", "column", "first", "revision")
EXAMPLE = "hub:Salesforce/wikitext?config=wikitext-2-raw-v1&split=test&column=text"
MAX_DOWNLOAD = 4 * 2**30
"""Bytes above which a data set is streamed or not read at all: C4 is 300 GB, and nobody meant that."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    name: str
    split: str
    config: str | None = None
    column: str = "text"
    first: int | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """What a reader needs to find the rows again; a local directory goes by its last name."""
        name = Path(self.name).resolve().name if Path(self.name).is_dir() else self.name
        version = f" at {self.revision}" if self.revision else ""
        return f"{name}{version} ({', '.join(part for part in (self.config, self.split) if part)})"


def parse(spec: str, *, split: str) -> Hub:
    """Read a spec without its `hub:`; `split` is the one taken where the spec names none."""
    name, _, query = spec.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    options: dict[str, Any] = dict(given)
    if not name or len(options) != len(given) or not all(options.values()) or (query and not given):
        raise UserError(
            f"'hub:{spec}' is not a hub data set. Write hub:NAME?key=value&key=value with the keys {_keys()}: {EXAMPLE}."
        )
    for key in options:
        if key not in KEYS:
            raise UserError(f"'hub:{spec}': unknown key {key!r}.{did_you_mean(key, KEYS)} Known: {_keys()}.")
    if "first" in options:
        if not options["first"].isdecimal() or int(options["first"]) < 1:
            raise UserError(
                f"'hub:{spec}': first={options['first']} is not a number of rows. Give a whole number of at least 1."
            )
        options["first"] = int(options["first"])
    return Hub(**{"name": name, "split": split, **options})


def rows(source: Hub) -> Iterator[Row]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(source.name, source.config, revision=source.revision)
        for number, row in enumerate(_open(source, builder), start=1):
            yield f"row {number}", row
    except UserError:
        raise
    except Exception as error:  # of httpx, fsspec, pyarrow, the hub's client: they share no other base
        raise UserError(
            f"hub data set {source.label} cannot be read: {_one_line(error)} Tried `datasets` on {source.name!r} with config "
            f"{source.config!r}, split {source.split!r}. Check the name, the config, the split, the network and "
            f"HF_HUB_OFFLINE; or give a file (.txt, .jsonl, .parquet), or the preset 'stdlib', which needs no network."
        ) from error


def _open(source: Hub, builder: Any) -> Any:
    if source.first is not None:
        return builder.as_streaming_dataset(split=source.split).take(source.first)
    size = builder.info.download_size or 0
    if size > MAX_DOWNLOAD:
        raise UserError(
            f"hub data set {source.label} is a download of {size / 2**30:,.0f} GiB; at most {MAX_DOWNLOAD / 2**30:,.0f} "
            f"GiB are fetched whole. Add first=N to stream only its first N rows, for instance first=2000."
        )
    builder.download_and_prepare()
    return builder.as_dataset(split=source.split)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}{'' if message.endswith('.') else '.'}"


def _keys() -> str:
    return ", ".join(KEYS)
