"""What there is to evaluate on with lm-eval: its own tasks by name; rows and task definitions on the disk, without network."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from secateur.calibration.rows import json_lines
from secateur.errors import UserError
from secateur.registry import did_you_mean

ROWS, DEFINITIONS = (".jsonl", ".json"), (".yaml", ".yml")
FORMS = "`query`, `choices` and `gold` (the number of the right choice, from 0), or `context` and `continuation`"
SPLIT = "test"

# A question is put as lm-eval puts it: without the "Passage: " that some files begin BoolQ's rows with, and "Answer:" behind it.
# A query that asks nothing, such as HellaSwag's, is continued as it stands.
PROMPT = (
    "{% set text = query.rstrip('\\n') %}"
    "{% if text.startswith('Question: ') or '\\nQuestion: ' in text %}"
    "{{ text.removeprefix('Passage: ') }}\nAnswer:"
    "{% else %}{{ text }}{% endif %}"
)


class Wanted(NamedTuple):
    """One item of `--tasks`: a name of lm-eval's, a place on the disk, or both: the rows there, asked as that task asks."""

    given: str
    name: str | None
    place: Path | None


def check_installed() -> None:
    """Raises `UserError` where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError(
            "tasks were given, and they are evaluated by lm-eval, which is not installed. Install it with the extra `eval`: "
            "pip install 'secateur[eval]'."
        )


def load_tasks(items: Sequence[str]) -> list[Any]:
    """lm-eval's tasks and groups of tasks, ready to run.

    An item is a name of lm-eval's; a file of rows (`.jsonl`) in one of the `FORMS`; `NAME=FILE.jsonl`, which gives such a file a
    name, or has the rows of lm-eval's own task NAME in it; a task definition (`.yaml`); or a directory of them, which is every task
    in it. Raises `UserError` for one that is none of these or cannot be loaded, and for two with one name.
    """
    check_installed()
    wanted = [_wanted(item) for item in items]
    index = cache(_manager)  # reading lm-eval's own definitions takes seconds
    found: list[Any] = []
    owners: dict[str, str] = {}
    for one in wanted:
        loaded = _load_one(one, index)
        for name in (name for each in loaded for name in _leaves(each)):
            if name in owners:
                raise UserError(
                    f"the task {name!r} is in {owners[name]!r} and in {one.given!r}. Leave out one of them, or give a file's task "
                    f"another name: NAME=FILE.jsonl."
                )
            owners[name] = one.given
        found.extend(loaded)
    return found


def rows_definition(path: Path, name: str) -> dict[str, Any] | None:
    """lm-eval's definition of a task whose rows are in a file in one of the `FORMS`; None for rows with other fields.

    Raises `UserError` for a file that is no JSON lines, has no row, or one that is unlike the others.
    """
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path} has no rows. Give a file with one JSON object a line, with {FORMS}.")
    first = rows[0][1]
    check = next((check for fields, check in _CHECKS.items() if fields <= first.keys()), None)
    if check is None:
        return None
    for where, row in rows:
        if problem := check(row):
            raise UserError(f"{path.name}, {where}: {problem}. Every row has {FORMS}. Mend or remove that row.")
    shared = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {SPLIT: str(path)}},
        "test_split": SPLIT,
        "fewshot_split": SPLIT,  # lm-eval leaves the row that is asked out of its own examples
        "metadata": {"version": 1.0},
    }
    if check is _choices:
        return shared | {
            "output_type": "multiple_choice", "doc_to_text": PROMPT, "doc_to_choice": "choices", "doc_to_target": "gold",
            "metric_list": [_mean("acc"), _mean("acc_norm")],
        }  # fmt: skip
    return shared | {
        "output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, _mean("acc")],
    }  # fmt: skip


def _wanted(item: str) -> Wanted:
    name, sign, place = item.partition("=")
    if sign and not Path(item).exists():
        if not name or Path(place).suffix.lower() not in ROWS:
            raise UserError(f"the task {item!r} is not NAME=FILE.jsonl. Give a name and a file of rows, or one of them.")
        return Wanted(item, name, _existing(item, Path(place)))
    path = Path(item)
    if path.suffix.lower() in (*ROWS, *DEFINITIONS) or os.sep in item or "/" in item or item in (".", ".."):
        return Wanted(item, None, _existing(item, path))
    return Wanted(item, item, None)


def _existing(item: str, path: Path) -> Path:
    if not path.exists():
        raise UserError(
            f"the task {item!r}: there is no {path}. Give a file of rows (.jsonl), a task definition of lm-eval's (.yaml), a directory "
            f"of definitions, or the name of one of lm-eval's tasks."
        )
    return path.absolute()


def _load_one(one: Wanted, index: Callable[[], Any]) -> list[Any]:
    if one.place is None:
        assert one.name is not None
        return _named(one.name, index())
    if one.place.is_dir():
        return _directory(one.given, one.place)
    if one.place.suffix.lower() in ROWS:
        definition = rows_definition(one.place, one.name or one.place.stem)
        if definition is not None:
            return _loaded(_manager(defaults=False), definition, one.given)
        if one.name is None:
            raise UserError(
                f"the rows of {one.given!r} have none of the fields that say what to do with them: {FORMS}. Where they are the rows of "
                f"one of lm-eval's tasks, say of which: NAME={one.given}."
            )
        return _own_rows(one.name, one.place, index(), one.given)
    manager = _manager(one.place.parent, defaults=False)
    if manager.all_groups:  # they may be of lm-eval's own tasks
        manager = _manager(one.place.parent)
    return _loaded(manager, str(one.place), one.given)


def _named(name: str, index: Any) -> list[Any]:
    entry = index.task_index.get(name)
    if entry is None:
        if Path(name).is_dir():
            return _directory(name, Path(name).absolute())
        raise UserError(
            f"lm-eval has no task {name!r}.{did_you_mean(name, index.all_tasks)} `lm-eval ls tasks` lists its tasks. Or give a file of "
            f"rows (.jsonl), a task definition (.yaml), or a directory of them."
        )
    origin = (entry.cfg or {}).get("dataset_path")
    advice = (
        f"{f'It is {origin} on the Hugging Face hub' if origin else 'Its data are on the Hugging Face hub'}: check the network, "
        f"HF_HUB_OFFLINE and HF_DATASETS_OFFLINE. Without network, give rows on the disk: {name}=FILE.jsonl."
    )
    return _loaded(index, name, name, advice)


def _directory(given: str, place: Path) -> list[Any]:
    manager = _manager(place, defaults=False)
    if not manager.all_subtasks:
        raise UserError(
            f"the directory {given!r} has no task definition that lm-eval can read. Give a directory with .yaml files that name a "
            f"`task`, or such a file itself, to see what is wrong with it."
        )
    return [task for name in manager.all_subtasks for task in _loaded(manager, name, f"{name} in {given}")]


def _own_rows(name: str, place: Path, index: Any, given: str) -> list[Any]:
    """One of lm-eval's own tasks on rows of its data set that are in a file."""
    entry = index.task_index.get(name)
    if entry is None or entry.yaml_path is None:
        raise UserError(
            f"the rows of {given!r} do not have {FORMS}, and lm-eval has no task {name!r} that they could be of."
            f"{did_you_mean(name, index.all_subtasks)} Give the name of the task that they are of."
        )
    import yaml

    changed = {
        "include": str(entry.yaml_path), "task": name, "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {SPLIT: str(place)}}, "training_split": None, "validation_split": None,
        "test_split": SPLIT, "fewshot_split": SPLIT,
    }  # fmt: skip
    with TemporaryDirectory(prefix="secateur-") as directory:
        path = Path(directory) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(changed))
        return _loaded(index, str(path), given, f"The rows must have the fields of {name}'s data set, and those of one split.")


def _manager(include: Path | None = None, *, defaults: bool = True) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include, include_defaults=defaults)


def _loaded(
    manager: Any, spec: str | dict[str, Any], given: str, advice: str = "Mend the definition or its rows."
) -> list[Any]:
    try:
        found = manager.load([spec])
    except Exception as error:  # of lm-eval, datasets, the hub's client, yaml, jinja and the definition's own code
        why = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"the task {given!r} cannot be loaded: {type(error).__name__}: {why}. {advice}") from error
    groups = list(found.get("groups", {}).values())
    loaded = groups[:1] or list(found["tasks"].values())
    for task in found["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            kind = "runs code that the model writes" if getattr(task, "UNSAFE_CODE", False) else "has images or sound in it"
            raise UserError(
                f"the task {task.config.task!r} {kind}, which is not done here. Leave it out, or run it with lm-eval."
            )
    return loaded


def _leaves(loaded: Any) -> list[str]:
    return [task.task_name for task in loaded.get_all_tasks()] if hasattr(loaded, "get_all_tasks") else [loaded.task_name]


def _rows(path: Path) -> Any:
    for where, row in json_lines(path):
        if not isinstance(row, dict):
            raise UserError(f"{path.name}, {where}: a {type(row).__name__}, and a row is a JSON object with {FORMS}.")
        yield where, row


def _choices(row: dict[str, Any]) -> str | None:
    query, choices, gold = row.get("query"), row.get("choices"), row.get("gold")
    if not isinstance(query, str):
        return f"query is {query!r}, not text"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        return f"choices is {choices!r}, not a list of two texts or more"
    if type(gold) is not int or not 0 <= gold < len(choices):
        return f"gold is {gold!r}, not the number of a choice, from 0 to {len(choices) - 1}"
    return None


def _continuation(row: dict[str, Any]) -> str | None:
    wrong = next((name for name in ("context", "continuation") if not isinstance(row.get(name), str) or not row[name]), None)
    return f"{wrong} is {row.get(wrong)!r}, not text" if wrong else None


_CHECKS = {frozenset({"query", "choices", "gold"}): _choices, frozenset({"context", "continuation"}): _continuation}


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
