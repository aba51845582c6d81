"""Rows of JSON lines, parquet files and hub data sets, and how they become one text."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from secateur.errors import UserError

BLANK_LINE = "\n\n"
Row = tuple[str, object]  # where it stands ("line 3"), and what stands there


class Joined(NamedTuple):
    body: str
    num_rows: int
    complete: bool
    """All rows are in; the limit was not met."""


def json_lines(path: Path) -> Iterator[Row]:
    """One JSON object per line, UTF-8; empty lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise UserError(
                    f"{path.name}, line {number}: not JSON ({error}). A .jsonl or .json file holds one JSON object a line: "
                    f"mend or remove that line, or convert the file."
                ) from error
            yield f"line {number}", row


def parquet(path: Path) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(found, start=1):
            yield f"row {number}", row
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"{path.name}: cannot be read as a parquet file ({error}). Write it anew, or give JSON lines."
        ) from error


def join(rows: Iterable[Row], *, field: str, source: str, advice: str, limit: int) -> Joined:
    """Join one text field of all rows by blank lines, up to the row that reaches `limit` characters.

    Rows with an empty text stay: published protocols count the blank lines they leave. `source` and `advice` are for the
    error messages: what was read, and how a user names another field.
    """
    bodies: list[str] = []
    size = 0
    for where, row in rows:
        if size >= limit:
            return Joined(BLANK_LINE.join(bodies), len(bodies), False)
        bodies.append(_text_of(row, field=field, where=f"{source}, {where}", advice=advice))
        size += len(bodies[-1]) + len(BLANK_LINE)
    return Joined(BLANK_LINE.join(bodies), len(bodies), True)


def _text_of(row: object, *, field: str, where: str, advice: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object with fields. Each row must be one JSON object.")
    if field not in row:
        fields = ", ".join(map(str, row)) or "none"
        raise UserError(f"{where}: no field {field!r}. Its fields: {fields}. Name the one that holds the text: {advice}.")
    value = row[field]
    if not isinstance(value, str):
        texts = ", ".join(str(name) for name, other in row.items() if isinstance(other, str)) or "none"
        raise UserError(
            f"{where}: field {field!r} is {type(value).__name__}, not text. Fields that are text there: {texts}. "
            f"Mend the row, or name another field: {advice}."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: field {field!r} is not valid Unicode ({error}). Mend or remove that row.") from error
    return value
