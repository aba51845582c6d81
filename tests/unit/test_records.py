"""Records: what is written is read again, what is no record is refused in words, and a model is known by its weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.plan import RECORD as PLAN_RECORD
from secateur.records import MODEL_RECORD, RECORD, Model, Record, identity, read_runs


def record(**changes: Any) -> Record:
    facts: dict[str, Any] = {
        "command": "secateur eval m", "settings": {"model": "m", "seed": 0}, "result": {"perplexity": 3.5},
        "models": {"model": Model(name="m", identity="abc")},
    }  # fmt: skip
    return Record.now("eval", **(facts | changes))


def same(one: Record, other: Record) -> bool:
    return one.to_json() == other.to_json()


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(figures={"layers": [{"ffn": 3}, None]})
    path = written.leave(tmp_path)
    for given in (path, path.parent, tmp_path):
        (found,) = read_runs([given])
        assert same(found, written)
    assert written.time and written.environment["python"] and written.environment["device"] == "cpu"
    assert [p.name for p in path.parent.iterdir()] == [RECORD]


def test_the_same_command_replaces_its_record(tmp_path: Path) -> None:
    first = record().leave(tmp_path)
    again = record(result={"perplexity": 4.5}, settings={"model": "m", "seed": 0, "resume": True}).leave(tmp_path)
    assert again == first
    assert read_runs([first])[0].result == {"perplexity": 4.5}
    others = [record(settings={"model": "m", "seed": 1}), record(models={"model": Model(name="m", identity="other")})]
    assert len({first, *(other.leave(tmp_path) for other in others)}) == 3


def test_what_came_out_does_not_change_the_place(tmp_path: Path) -> None:
    before = Model(name="m", identity="abc")
    places = {
        record(models={"before": before, "after": Model(name="o", identity=i)}).leave(tmp_path) for i in ("one", "two", None)
    }
    assert len(places) == 1


def test_a_pruned_model_holds_its_record(tmp_path: Path) -> None:
    written = record()
    (tmp_path / MODEL_RECORD).write_text(
        json.dumps({"stock": True, "plan": {}, "provenance": {**written.to_json(), "texts": {}}})
    )
    copy = written.leave(tmp_path / "runs")
    assert [same(found, written) for found in read_runs([tmp_path, copy])] == [True], "the same record twice is one"
    assert MODEL_RECORD == PLAN_RECORD


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a record of secateur: it has no `schema`"),
        ('{"perplexity": 3}', "is not a record of secateur: it has no `schema`"),
        ('{"schema": 2}', "has schema 2, and this version reads schema 1. Read it with the version that wrote it"),
        ('{"schema": 1}', "is damaged: `verb` is missing, and must be a text. Run its command again."),
        ('{"plan": {}, "provenance": {"result": {}}}', "an earlier secateur wrote it. Prune the model again"),
        ('{"plan": {}, "provenance": 3}', "an earlier secateur wrote it. Prune the model again"),
        (json.dumps({**record().to_json(), "result": [1]}), "`result` is [1], and must be an object. Run its command again."),
        (json.dumps({**record().to_json(), "models": {"model": 7}}), "the model `model` is 7. Run its command again."),
        (json.dumps({**record().to_json(), "models": {"model": {"name": "m", "identity": 7}}}), "the model `model` is {'name': 'm'"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        read_runs([tmp_path / "x.json"])
    assert "x.json" in str(refused.value)


def test_a_place_without_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for given, said in (
        (tmp_path, "holds no record: neither record.json"),
        (tmp_path / "none", "there is no"),
        (tmp_path / "binary", "is not JSON"),
    ):
        with pytest.raises(UserError, match=f"{said}.*Give the directory or the `record.json` that a command named"):
            read_runs([given])


def test_a_model_is_known_by_its_weights(tmp_path: Path) -> None:
    for name, weights in {"a": b"x" * 9000, "b": b"x" * 9000, "c": b"x" * 8999 + b"y", "d": b"x" * 9001}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    (tmp_path / "b" / "config.json").write_text("{}")
    found = {name: identity(tmp_path / name) for name in "abcd"}
    assert found["a"] == found["b"] and len(set(found.values())) == 3 and None not in found.values()
    assert identity(tmp_path) is None
    assert identity("not a model:") is None and identity("some/hub-model-that-is-not-here") is None
