"""The run directory: one for each identity, files replaced all at once, one process at a time where that matters."""

import fcntl
import json
from pathlib import Path

import pytest

from secateur.errors import UserError
from secateur.runs import RunDirectory


def test_a_directory_belongs_to_an_identity(tmp_path: Path) -> None:
    first = RunDirectory.make(tmp_path, model="a", blocks="b")
    assert RunDirectory.make(tmp_path, blocks="b", model="a") == first
    assert RunDirectory.make(tmp_path, model="b", blocks="a") != first
    assert first.read("identity.json") == {"model": "a", "blocks": "b"}


def test_what_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run directory .*Give another --run-dir"):
        RunDirectory.make(tmp_path / "file", model="a")


def test_files_are_replaced_and_results_kept(tmp_path: Path) -> None:
    run = RunDirectory.make(tmp_path, model="a")
    run.remember("x", {"perplexity": 3.5})
    run.remember("y", {"perplexity": 4.5})
    assert (run.recall("x"), run.recall("y"), run.recall("z")) == ({"perplexity": 3.5}, {"perplexity": 4.5}, None)
    (run.path / "results.json").write_text("{")
    assert run.recall("x") is None and run.read("nothing.json") is None
    run.log("layer", number=3)
    run.log("layer", number=4)
    lines = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    assert [(line["event"], line["number"]) for line in lines] == [("layer", 3), ("layer", 4)]
    assert {path.name for path in run.path.iterdir()} == {"identity.json", "results.json", "journal.jsonl"}


def test_one_process_waits_for_another(tmp_path: Path) -> None:
    run, waited = RunDirectory.make(tmp_path, model="a"), []
    with run.alone(lambda: waited.append("alone")):
        pass
    with (run.path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def waiting() -> None:
            waited.append("for the other")
            fcntl.flock(other, fcntl.LOCK_UN)

        with run.alone(waiting), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert waited == ["for the other"]
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_system_without_locks_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = []
    with RunDirectory.make(tmp_path, model="a").alone(lambda: entered.append("waited")):
        entered.append("in")
    assert entered == ["in"]
