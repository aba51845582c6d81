"""Rows of tasks that the embedded model can answer, and their files."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from secateur.evaluation import tasks

CHOICES = [
    {"query": "Question: Which module reads a file of JSON?", "choices": ["json", "socket", "a very long name"], "gold": 0},
    {"query": "Question: What does len of a list return?\n", "choices": ["the number of its items", "None"], "gold": 0},
    {"query": "Question: What ends a loop?", "choices": ["import", "break", "a tuple"], "gold": 1},
    {"query": "import os\n\n\ndef main(", "choices": ["argv): pass", "return return"], "gold": 0},
    {
        "query": "Passage: A set holds no item twice.\nQuestion: does a set hold an item twice?",
        "choices": ["no", "yes"],
        "gold": 0,
    },
    {"query": "Passage: A list may.\nQuestion: may a list hold an item twice?", "choices": ["no", "yes"], "gold": 1},
]
CONTINUATIONS = [
    {"context": "import os\nimport sys\n\n\nclass Parser:\n    def __init__(self,", "continuation": "name):"},
    {"context": "for item in self.items:\n    if item is", "continuation": "None"},
    {"context": "def main():\n    parser = argparse.", "continuation": "ArgumentParser()"},
    {"context": "raise", "continuation": "ValueError"},
    {"context": "    def __len__(self):\n        return", "continuation": "len(self.data)"},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("rows")
    return [write(place / "python.jsonl", CHOICES), write(place / "next.jsonl", CONTINUATIONS)]


@pytest.fixture(scope="module", autouse=True)
def one_index() -> Iterator[None]:
    """Reading lm-eval's own definitions takes seconds: it is done once here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_manager", cache(tasks._manager))
        yield
