"""The output directory: refused in time, put in place all at once, and nothing else touched."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.export import huggingface
from secateur.export.huggingface import check_disk, check_output, copy_companions, disk_free, published

PARTIAL = ".out.partial-0123abcd"


def make(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text(name)
    return directory


def publish(out: Path, problem: BaseException) -> None:
    with published(out) as fresh:
        make(fresh, "new")
        raise problem


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("before", ["nothing", "empty", "model", "no parent"])
def test_the_directory_appears_whole(tmp_path: Path, before: str) -> None:
    out = tmp_path / "a" / "b" / "out" if before == "no parent" else tmp_path / "out"
    if before in ("empty", "model"):
        make(out, *(["old"] if before == "model" else []))
    with published(out) as fresh:
        make(fresh, "new")
        assert fresh.parent == out.parent and (not out.exists() or names(out) <= {"old"})
    assert names(out) == {"new"} and names(out.parent) == {"out"}


@pytest.mark.parametrize("problem", [UserError("mistake"), KeyboardInterrupt(), ValueError("bug")])
def test_a_block_that_ends_badly_leaves_what_was_there(tmp_path: Path, problem: BaseException) -> None:
    out = make(tmp_path / "out", "old")
    with pytest.raises(type(problem)):
        publish(out, problem)
    assert names(out) == {"old"} and names(tmp_path) == {"out"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_what_the_system_refuses_is_told(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match=f"{os.strerror(number)}.*what was measured is kept"):
        publish(tmp_path / "out", OSError(number, os.strerror(number)))
    assert not names(tmp_path)


def failing_rename(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    real: Callable[..., Any] = Path.rename
    calls: list[Path] = []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("call", [1, 2])
def test_a_replacement_that_fails_brings_the_old_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    out = make(tmp_path / "out", "old")
    failing_rename(monkeypatch, call)
    with pytest.raises(UserError, match="Input/output error"), published(out) as fresh:
        make(fresh, "new")
    assert names(out) == {"old"} and names(tmp_path) == {"out"}


def test_leftovers_of_killed_runs_go_and_nothing_else(tmp_path: Path) -> None:
    kept = {".out.partial-notours", ".output.partial-0123abcd", ".out2.partial-0123abcd-old", "out.partial-0123abcd"}
    for name in (PARTIAL, ".out.partial-fedcba98", f"{PARTIAL}-old", *kept):
        make(tmp_path / name, "x")
    make(tmp_path / "out")
    with published(tmp_path / "out"):
        assert len(names(tmp_path)) == len(kept) + 2
    assert names(tmp_path) == kept | {"out"}


@pytest.mark.parametrize("name", ["o[ut]*", "öüt", "a b", "-x"])
def test_leftovers_go_whatever_the_name(tmp_path: Path, name: str) -> None:
    make(tmp_path / f".{name}.partial-0123abcd", "x")
    make(tmp_path / ".ou.partial-0123abcd")
    with published(tmp_path / name) as fresh:
        make(fresh, "new")
    assert names(tmp_path) == {name, ".ou.partial-0123abcd"}


def test_a_model_on_its_way_to_be_replaced_is_put_back_first(tmp_path: Path) -> None:
    make(tmp_path / f"{PARTIAL}-old", "old")
    make(tmp_path / PARTIAL, "new")
    with pytest.raises(UserError, match="mistake"):
        publish(tmp_path / "out", UserError("mistake"))
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"old"}


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        done.append("renamed")
        return real_rename(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("descriptors have no names here")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    with published(tmp_path / "out") as fresh:
        make(fresh, "config.json", "model.safetensors")
    assert set(done[:2]) == {"config.json", "model.safetensors"}
    assert done[2:] == [fresh.name, "renamed"]


def test_outputs_are_checked_and_nothing_is_made(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "out", force=False, inputs={})
    check_output(make(tmp_path / "empty"), force=False, inputs={})
    check_output(make(tmp_path / "model", "config.json", "x.safetensors"), force=True, inputs={})
    assert names(tmp_path) == {"empty", "model"}


@pytest.mark.parametrize("force", [False, True])
def test_inputs_are_never_replaced(tmp_path: Path, force: bool) -> None:
    model, text = make(tmp_path / "m", "config.json"), make(tmp_path / "data", "text.txt") / "text.txt"
    (tmp_path / "link").symlink_to(model)
    for out in (model, model / "pruned", tmp_path / "link", tmp_path / "link" / "pruned", model / ".." / "m"):
        with pytest.raises(UserError, match="never changed"):
            check_output(out, force=force, inputs={}, model=model)
    for out in (tmp_path / "data", tmp_path):
        with pytest.raises(UserError, match="holds the text, which would be replaced"):
            check_output(out, force=force, inputs={"the text": text}, model=model)
    check_output(tmp_path / "data" / "out", force=force, inputs={"the text": text}, model=model)


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(UserError, match="is a mount point"):
        check_output(tmp_path, force=True, inputs={})


def test_a_place_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="not a directory that you may write in"):
        check_output(tmp_path / "x" / "out", force=False, inputs={})


def test_needs_on_one_disk_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    check_disk({tmp_path / "a": 2**19, tmp_path / "not" / "there": 2**19})
    with pytest.raises(UserError, match=r"a' and .*b'.* 1\.00 MiB are needed and 1\.00 MiB are free"):
        check_disk({tmp_path / "a": 2**19, tmp_path / "b": 2**19 + 1})
    assert disk_free(tmp_path / "not" / "there" / "yet") == 2**20


def test_companions_are_copied_as_files(tmp_path: Path) -> None:
    source, blobs = (
        make(tmp_path / "source", "LICENSE.txt", "modeling_x.py", "pytorch_model.bin", "config.json"),
        tmp_path / "blobs",
    )
    make(blobs, "0", "1")
    (source / "tokenizer.json").symlink_to(blobs / "0")
    (source / "merges.txt").symlink_to(blobs / "gone")
    make(source / "tokenizer_extra", "x")
    copy_companions(source, make(tmp_path / "target"))
    assert names(tmp_path / "target") == {"LICENSE.txt", "tokenizer.json"}
    assert not (tmp_path / "target" / "tokenizer.json").is_symlink()
