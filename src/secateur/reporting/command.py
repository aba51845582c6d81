"""Settings and results without the directories of the machine they come from, and the command that does the same again."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Settings that say where and how a run took place, not what it made.
SILENT = frozenset({"resume", "force", "dry_run", "run_dir", "push_to_hub", "private"})
NEGATED = frozenset({"tokenizer", "check"})
"""Switches that are on unless they are turned off."""
SPACED = frozenset({"methods", "estimators"})
REPEATED = frozenset({"prompt"})
POSITIONAL = ("model", "other", "others")
WRITTEN = frozenset({"out", "save_state"})
PATHS = frozenset({"model", "calibration", "evaluation", "text", "state", "small", "other", "others", "path", "tasks"})


def named(value: str) -> str:
    """A preset, a hub id or a hub data set as it is; a local path by its last part: directories are nobody else's business."""
    path = Path(value)
    return path.name if path.is_absolute() or value.startswith((".", "~")) or os.path.exists(path) else value  # noqa: PTH110


def portable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings or a result without the directories of the machine that they come from.

    What a result says of its texts is a sentence, too long for the name of a file: `os.path.exists` is False for such a one, and
    `Path.exists` raises.
    """
    return {n: _told(n, v) for n, v in facts.items() if n not in ("run_dir", "load")}


def _told(name: str, value: Any) -> Any:
    if name in WRITTEN and isinstance(value, str):
        return Path(value).name  # whether or not it is there already: the same command is told the same
    return _named(value) if name in PATHS else _inner(value)


def _named(value: Any) -> Any:
    """A name, or several; `NAME=FILE.jsonl` of a task has one in it."""
    if isinstance(value, str):
        name, equals, path = value.partition("=")
        return f"{name}={named(path)}" if equals and "/" in path and "/" not in name else named(value)
    return [_named(one) for one in value] if isinstance(value, (list, tuple)) else _inner(value)


def _inner(value: Any) -> Any:
    """Rows of a result name models as well."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) for one in value):
        return [portable(one) for one in value]
    return value


def command(settings: Mapping[str, Any], verb: str = "prune") -> str:
    """The command line that makes the same again, from portable settings."""
    parts = ["secateur", *verb.split()]
    for name in POSITIONAL:
        given = settings.get(name)
        parts += map(str, given if isinstance(given, (list, tuple)) else [given] if given is not None else [])
    for name, value in settings.items():
        if name in NEGATED and value is False:
            parts.append(f"--no-{name}")
        if name in SILENT or name in POSITIONAL or value is None or value is False or value in ("", [], ()):
            continue
        flag = "--" + {"evaluation": "eval"}.get(name, name).replace("_", "-")
        if name in REPEATED and isinstance(value, (list, tuple)):
            parts += [part for one in value for part in (flag, str(one))]
            continue
        between = " " if name in SPACED else ","
        shown = between.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        parts += [flag] if value is True else [flag, shown]
    return shlex.join(parts)
