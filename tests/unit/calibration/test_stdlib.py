import hashlib
import sys
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest

from secateur.calibration import stdlib
from secateur.errors import UserError

SPLITS = get_args(stdlib.Split)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_sources_and_topics(split: stdlib.Split):
    names = [name for name, _ in stdlib.documents(split)]
    assert sum(name.startswith("topic:") for name in names) >= 5
    assert sum(name.endswith(".py") for name in names) >= 8
    assert len(set(names)) == len(names)


def test_no_document_is_in_two_splits():
    found = {split: dict(stdlib.documents(split)) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not found[one].keys() & found[other].keys()
        assert not {body.strip() for body in found[one].values()} & {body.strip() for body in found[other].values()} - {""}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lists are pinned against the topics of Python 3.11")
def test_no_long_passage_of_a_held_out_topic_is_in_the_training_text():
    """What `OVERLAPPING_TOPICS` is for: topics repeat each other's paragraphs."""
    training = stdlib.text("train")
    for split in ("calibration", "evaluation"):
        for name, body in stdlib.documents(split):
            if name.startswith("topic:"):
                repeated = [p for p in body.split("\n\n") if len(p) > 400 and p in training]
                assert not repeated, (name, repeated[:1])


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_documents_are_joined_by_the_separator_alone(split: stdlib.Split):
    bodies = [body for _, body in stdlib.documents(split)]
    text = stdlib.text(split)
    assert text.split(stdlib.SEPARATOR) == [body.replace(stdlib.SEPARATOR, "") for body in bodies]


def test_the_fingerprint_is_of_names_and_texts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdlib, "documents", lambda split: iter([("a.py", "x = 1"), (f"{split}.py", "é")]))
    expected = hashlib.sha256("a.py\0005\0x = 1calibration.py\0001\0é".encode()).hexdigest()
    assert stdlib.fingerprint("calibration") == expected
    assert stdlib.fingerprint("evaluation") != expected


def test_a_module_this_python_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdlib, "EVALUATION_MODULES", ("heapq", "no_such_module"))
    assert [name for name, _ in stdlib.documents("evaluation") if name.endswith(".py")] == ["heapq.py"]


def test_a_package_is_all_its_files_without_its_tests(tmp_path: Path):
    for name in ("__init__.py", "b.py", "a.py", "test/test_a.py", "sub/tests/t.py", "sub/c.py"):
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).touch()
    found = [p.relative_to(tmp_path / "package").as_posix() for p in stdlib._sources(tmp_path, "package")]
    assert found == ["__init__.py", "a.py", "b.py", "sub/c.py"]


def test_a_python_without_sources_says_what_else_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(stdlib.pydoc_data.topics, "topics", {})
    with pytest.raises(UserError, match="no standard-library sources under"):
        stdlib.text("evaluation")
