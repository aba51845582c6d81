"""Where text comes from: a preset, a file, or a hub data set."""

import codecs
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from secateur.calibration import hub, rows, stdlib
from secateur.calibration.presets import PRESETS
from secateur.errors import UserError
from secateur.registry import did_you_mean

Role = Literal["calibration", "evaluation"]

MAX_SIZE = 64 * 2**20
"""How much of a text is read: bytes of a text file, characters of joined rows. Bounds memory, whatever file is given."""

_ROWS = re.compile(r"(?P<path>.+\.(?:jsonl|json|parquet))(?::(?P<field>[^:/\\]+))?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text and what a reader must know to build it again."""

    name: str
    body: str
    joined: str
    """How its documents were joined, as a phrase: "rows joined by a blank line"."""


def read_text(spec: str, *, role: Role) -> Text:
    """Read the text that `spec` names: at most the first `MAX_SIZE` of it, which the name then says.

    A spec is the name of a preset, of which `role` chooses the split; a file: JSON lines (`FILE.jsonl` or `FILE.jsonl:FIELD`,
    the field is `text` unless named), parquet (the same), anything else as UTF-8 text; or a hub data set (see `hub`).

    Raises `UserError` where the text cannot be found or read, or is empty.
    """
    if spec in PRESETS:
        found = _read(PRESETS[spec].calibration if role == "calibration" else PRESETS[spec].evaluation, role)
        found = replace(found, name=f"{spec}: {found.name}")
    else:
        found = _read(spec, role)
    if not found.body.strip():
        raise UserError(
            f"the {role} text {spec!r} is empty. Give a text with words in it, or one of the presets: {_presets()}."
        )
    return found


def read_texts(calibration: str, evaluation: str | None = None) -> tuple[Text, Text]:
    """Read the text to calibrate on and the text to evaluate on.

    With no `evaluation`, a preset gives its evaluation split; of any other text the last fifth is held out.
    """
    text = read_text(calibration, role="calibration")
    if evaluation is not None:
        return text, read_text(evaluation, role="evaluation")
    return (text, read_text(calibration, role="evaluation")) if calibration in PRESETS else hold_out(text)


def hold_out(text: Text) -> tuple[Text, Text]:
    """The first four fifths of a text to calibrate on and its last fifth to evaluate on; no character is in both.

    The cut falls after a paragraph, or else after a line or a word, if one ends within the tenth before it.
    """
    cut = len(text.body) * 4 // 5
    for mark in ("\n\n", "\n", " "):
        found = text.body.rfind(mark, cut * 9 // 10, cut)
        if found >= 0:
            cut = found + len(mark)
            break
    return (
        replace(text, name=f"first four fifths of {text.name}", body=text.body[:cut]),
        replace(text, name=f"held-out last fifth of {text.name}", body=text.body[cut:]),
    )


def _read(spec: str, role: Role) -> Text:
    scheme, _, rest = spec.partition(":")
    if scheme == "hub":
        return _hub(rest, role)
    if scheme == "stdlib":
        return _stdlib(rest)
    match = _ROWS.fullmatch(spec)
    path = Path(match["path"]) if match and not Path(spec).exists() else Path(spec)
    if not path.exists():
        raise UserError(
            f"the {role} text {spec!r} is neither a preset nor a file.{did_you_mean(spec, PRESETS)} Presets: {_presets()}. "
            f"Or give a text file, a .jsonl or .parquet file (FILE.jsonl:FIELD names the field), or a hub data set: "
            f"{hub.EXAMPLE}."
        )
    if not path.is_file():
        raise UserError(
            f"the {role} text {spec!r} is a directory. Give a file in it; a local data set is hub:{spec}?split=train."
        )
    try:
        return _rows(path, (match["field"] if match else None) or "text") if match else _plain(path)
    except OSError as error:
        raise UserError(
            f"the {role} text {spec!r} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error


def _plain(path: Path) -> Text:
    with path.open("rb") as file:
        data = file.read(MAX_SIZE)
        complete = not file.read(1)
    try:
        body = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=complete)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start:,}. Convert it to UTF-8; compressed or binary "
            f"files cannot be read, rows can be given as .jsonl or .parquet."
        ) from error
    if "\0" in body:
        raise UserError(
            f"{path.name} is not text: it holds a zero byte at character {body.index(chr(0)):,}. Give a UTF-8 text file."
        )
    name = path.name if complete else f"first {MAX_SIZE / 2**20:g} MiB of {path.name}"
    return Text(name=name, body=body, joined="as it is in the file")


def _rows(path: Path, field: str) -> Text:
    kind = path.suffix.lower()
    found = rows.parquet(path) if kind == ".parquet" else rows.json_lines(path)
    joined = rows.join(found, field=field, source=path.name, advice=f"{path.name}:FIELD", limit=MAX_SIZE)
    return _joined(joined, path.name if field == "text" else f"{path.name}:{field}", first=None)


def _hub(spec: str, role: Role) -> Text:
    source = hub.parse(spec, split="train" if role == "calibration" else "test")
    advice = f"column=FIELD after hub:{source.name}?"
    joined = rows.join(hub.rows(source), field=source.column, source=source.label, advice=advice, limit=MAX_SIZE)
    name = source.label if source.column == "text" else f"{source.label}, column {source.column}"
    return _joined(joined, name, first=source.first)


def _joined(joined: rows.Joined, name: str, *, first: int | None) -> Text:
    cut = not joined.complete or joined.num_rows == first
    name = f"first {joined.num_rows:,} rows of {name}" if cut else name
    return Text(name=name, body=joined.body, joined="rows joined by a blank line")


def _stdlib(split: str) -> Text:
    if split not in get_args(stdlib.Split):
        raise UserError(f"the built-in text has no split {split!r}. Give the preset 'stdlib', which chooses its split itself.")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Text(
        name=f"{split} split of the Python {version} standard library",
        body=stdlib.text(split),  # pyright: ignore[reportArgumentType]
        joined=f"documents joined by {stdlib.SEPARATOR}",
    )


def _presets() -> str:
    return ", ".join(PRESETS)
