"""How a command answers: a table or one JSON object on stdout, everything else on stderr, and the exit code."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.cli.terminal import Terminal, duration
from secateur.errors import UserError

# Names that say too little where no documentation is near.
LABELS = {"verified": "largest difference when checked"}
# What the operating system refuses for reasons that only the person can mend.
MENDABLE = {
    errno.ENOSPC: "the disk is full: make room, or write somewhere else",
    errno.EDQUOT: "the disk quota is used up: make room, or write somewhere else",
    errno.EACCES: "permission denied: choose a place that you may read and write, or change its permissions",
    errno.EPERM: "not permitted: choose a place that you may read and write, or change its permissions",
    errno.EROFS: "the file system is read-only: write somewhere else",
}


class Output:
    """Around a command's body: gives it a reporter, prints its result, and turns a person's mistake into one paragraph."""

    def __init__(self, as_json: bool, *, interrupted: str = "") -> None:
        self.as_json = as_json
        self.reporter = Terminal(Console(stderr=True))
        self._interrupted = interrupted

    def __enter__(self) -> "Output":
        return self

    def show(self, title: str, result: Mapping[str, Any]) -> None:
        if self.as_json:
            typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        else:
            Console().print(render(title, result))

    def tell(self, title: str, facts: Mapping[str, Any]) -> None:
        """What a person may want to know beside an answer that is all there is on stdout."""
        Console(stderr=True).print(render(title, facts))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            self._fail(str(error))
        elif isinstance(error, OSError) and error.errno in MENDABLE:
            self._fail(f"{error.filename or 'a file'}: {MENDABLE[error.errno]}.")
        elif isinstance(error, KeyboardInterrupt):
            typer.echo(f"interrupted. {self._interrupted}".strip(), err=True)
            raise typer.Exit(130) from None
        elif isinstance(error, Exception) and not isinstance(error, typer.Exit):
            error.add_note(
                "This is a bug in Secateur, not in what you did. Please report it with the command and this traceback."
            )

    def _fail(self, problem: str) -> None:
        text = " ".join(line.strip() for line in problem.splitlines())
        typer.echo(f"error: {text}", err=True)
        if self.as_json:
            typer.echo(json.dumps({"error": text}, ensure_ascii=False))
        raise typer.Exit(2) from None


def render(title: str, result: Mapping[str, Any]) -> RenderableType:
    """Pairs `x_before`, `x_after` side by side, lists of rows as tables, and the rest as a list of names and values."""
    pairs = [name.removesuffix("_before") for name in result if name.endswith("_before")]
    pairs = [name for name in pairs if _is_number(result[f"{name}_before"]) and _is_number(result.get(f"{name}_after"))]
    paired = {f"{name}_{side}" for name in pairs for side in ("before", "after")}
    tables = {name: value for name, value in result.items() if _is_rows(value) and (value or len(result) == 1)}
    single = {n: v for n, v in result.items() if v is not None and v != () and n not in paired and n not in tables}
    parts: list[RenderableType] = [Text(title, style="bold")]
    if pairs:
        parts.append(_before_after(pairs, result))
    if single:
        parts.append(_names_and_values(single))
    parts.extend(_rows(name if len(result) > 1 else "", rows) for name, rows in tables.items())
    return Group(*parts)


def _before_after(names: list[str], result: Mapping[str, Any]) -> Table:
    table = Table("", box=None, pad_edge=False)
    for side in ("before", "after", "change"):
        table.add_column(side, justify="right")
    for name in names:
        before, after = result[f"{name}_before"], result[f"{name}_after"]
        change = f"{after / before - 1:+.1%}" if before else ""
        table.add_row(_words(name), spelled(name, before), spelled(name, after), change)
    return table


def _names_and_values(single: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in single.items():
        table.add_row(Text(_words(name)), Text(spelled(name, value), overflow="fold"))
    return table


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value)


def _rows(title: str, rows: list[Mapping[str, Any]]) -> RenderableType:
    if not rows:
        return Text(f"{title}: none" if title else "none")
    table = Table(box=None, pad_edge=False, title=_words(title) if title else None, title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numeric = all(isinstance(row.get(name, 0), (int, float)) for row in rows)
        table.add_column(_words(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(spelled(name, row.get(name))) for name in names))
    return table


def _words(name: str) -> str:
    if name in LABELS:
        return LABELS[name]
    words = [word for word in name.split("_") if word not in ("bytes", "seconds")]  # the value carries its unit
    return " ".join(words) or {"bytes": "size", "seconds": "time"}[name]


def spelled(name: str, value: Any) -> str:
    """A value as a person reads it; the name of the key says its unit."""
    words = name.split("_")
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {spelled(key, inner)}" for key, inner in value.items() if inner not in (None, (), []))
    if isinstance(value, (list, tuple)):
        return ("\n" if any(" " in str(inner) for inner in value) else ", ").join(spelled(name, inner) for inner in value)
    if isinstance(value, (str, Path)):
        return str(value)
    if "bytes" in words:
        return _bytes(value)
    if "seconds" in words:
        return duration(value)
    if "ratio" in words:
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _bytes(count: int | float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"
