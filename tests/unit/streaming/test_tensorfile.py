"""The safetensors reader and writer: the reference implementation agrees, and no file, however broken, raises anything unclear."""

import errno
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secateur.errors import UserError
from secateur.streaming import tensorfile
from secateur.streaming.tensorfile import DTYPES, TensorFile, TensorWriter

here = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
tensors = st.dictionaries(
    st.text("abc.é", min_size=1, max_size=4),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    max_size=5,
)


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and bool((x.reshape(-1).double() == y.reshape(-1).double()).all())


@here
@given(layout=tensors)
def test_what_one_writes_the_other_reads(tmp_path: Path, layout: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    made = {name: filled(DTYPES[kind], shape, at) for at, (name, (kind, shape)) in enumerate(layout.items())}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with TensorWriter(ours, {name: (x.dtype, tuple(x.shape)) for name, x in made.items()}) as writer:
        for name in sorted(made):
            writer.write(name, made[name])
    save_file(made, theirs)
    read, file = load_file(ours), TensorFile.open(theirs)
    assert read.keys() == file.entries.keys() == made.keys()
    assert all(same(read[name], x) and same(file.read(name), x) for name, x in made.items())


@here
@given(rows=st.sets(st.integers(0, 11)).map(sorted))
def test_rows_are_those_of_the_tensor(tmp_path: Path, rows: list[int]) -> None:
    x = filled(torch.bfloat16, (12, 3))
    save_file({"x": x}, tmp_path / "f")
    found = TensorFile.open(tmp_path / "f").read_rows("x", torch.tensor(rows, dtype=torch.long))
    assert torch.equal(found, x[rows])


def test_a_tensor_is_read_over_one_of_its_kind_alone(tmp_path: Path) -> None:
    save_file({"x": filled(torch.float32, (2, 3))}, tmp_path / "f")
    file, old, other = TensorFile.open(tmp_path / "f"), torch.zeros(2, 3), torch.zeros(3, 2)
    assert file.read("x", old) is old and torch.equal(old, filled(torch.float32, (2, 3)))
    assert file.read("x", other) is not other and not other.any()


def test_pieces_copy_a_tensor_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "CHUNK", 7)
    x = filled(torch.float32, (5, 3))
    save_file({"before": x, "x": x + 1}, tmp_path / "f")
    with TensorWriter(tmp_path / "g", {"y": (x.dtype, (5, 3))}) as writer:
        writer.copy("y", TensorFile.open(tmp_path / "f"), "x")
    assert torch.equal(load_file(tmp_path / "g")["y"], x + 1)


@pytest.mark.parametrize("how", ["write", "copy"])
def test_a_system_that_writes_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    real, x = os.pwrite, filled(torch.float64, (4, 3))
    save_file({"x": x}, tmp_path / "f")
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:5], at))
    with TensorWriter(tmp_path / "g", {"x": (x.dtype, (4, 3))}) as writer:
        writer.write("x", x) if how == "write" else writer.copy("x", TensorFile.open(tmp_path / "f"), "x")
    assert torch.equal(load_file(tmp_path / "g")["x"], x)


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADERS: list[tuple[Any, str]] = [
    (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 50_000, "not JSON"), (b"1" * 5000, "not JSON"), (b"[]", "not a JSON object"),
    ({"x": 3}, "described as"), ({"x": {}}, "described as"), ({"x": ENTRY | {"dtype": 4}}, "described as"),
    ({"x": ENTRY | {"shape": [-2, -3]}}, "described as"), ({"x": ENTRY | {"shape": [2.0, 3]}}, "described as"),
    ({"x": ENTRY | {"shape": [True, 6]}}, "described as"), ({"x": ENTRY | {"data_offsets": [-24, 0]}}, "described as"),
    ({"x": ENTRY | {"data_offsets": [0]}}, "described as"), ({"x": ENTRY | {"shape": [2, 10**30]}}, "claims 24 bytes"),
    ({"x": ENTRY | {"data_offsets": [0, 20]}}, "claims 20 bytes"), ({"x": ENTRY | {"dtype": "F4"}}, "in the type F4"),
    ({"x": ENTRY, "y": ENTRY}, "'y' starts at byte"), ({"x": ENTRY | {"data_offsets": [8, 32]}}, "'x' starts at byte"),
    ({"x": ENTRY, "y": ENTRY | {"data_offsets": [24, 48]}}, "its header needs"), ({}, "its header needs"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "says"), HEADERS, ids=lambda value: str(value)[:40])
def test_a_broken_header_is_told_with_its_file(tmp_path: Path, header: Any, says: str) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(UserError, match=says) as caught:
        TensorFile.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "says"), [(0, "it has 0 bytes"), (5, "it has 5 bytes"), (40, "claims"), (-1, "its header needs")]
)
def test_a_file_that_is_too_short_is_told(tmp_path: Path, size: int, says: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=says):
        TensorFile.open(path)


@here
@given(at=st.integers(0, 99), value=st.integers(0, 255), cut=st.integers(0, 30))
def test_any_damage_is_a_user_error_or_readable(tmp_path: Path, at: int, value: int, cut: int) -> None:
    path = tmp_path / "f"
    save_file({"x": torch.zeros(3), "y": torch.zeros(2, 2, dtype=torch.int8)}, path)
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        file = TensorFile.open(path)
    except UserError:
        return
    for name in file.entries:
        file.read(name)


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_file({"x": torch.zeros(300)}, path)
    file = TensorFile.open(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{path} is truncated or corrupt: it ends at byte"):
        file.read("x")
    (tmp_path / "g").write_bytes(path.read_bytes())
    (tmp_path / "g").rename(path)
    with pytest.raises(UserError, match=f"{path} was replaced while it was being read"):
        file.read_rows("x", torch.tensor([1]))
    path.unlink()
    for read in (lambda: file.read("x"), lambda: file.read_rows("x", torch.tensor([1])), lambda: TensorFile.open(path)):
        with pytest.raises(UserError, match=f"cannot read the weights file {path}: No such file"):
            read()
    with pytest.raises(UserError, match="cannot read the weights file"):
        TensorFile.open(tmp_path)


def refusing(number: int) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


LAYOUT = {"x": (torch.float32, (2,))}


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_names_the_file_and_frees_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, refusing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        TensorWriter(tmp_path / "f", LAYOUT)
    assert caught.value.filename == str(tmp_path / "f") and not list(tmp_path.iterdir())
    gc.collect()  # a descriptor that is left open would warn now


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.EOPNOTSUPP), raising=False)
    with TensorWriter(tmp_path / "f", LAYOUT) as writer:
        writer.write("x", torch.ones(2))
    assert torch.equal(load_file(tmp_path / "f")["x"], torch.ones(2))


def test_a_full_disk_in_the_middle_is_not_taken_for_a_bad_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "f")

    def copy() -> None:
        with TensorWriter(tmp_path / "g", LAYOUT) as writer:
            monkeypatch.setattr(os, "pwrite", refusing(errno.ENOSPC))
            writer.copy("x", TensorFile.open(tmp_path / "f"), "x")

    with pytest.raises(OSError, match="No space left") as caught:
        copy()
    assert caught.value.filename == str(tmp_path / "g")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, UserError, AssertionError])
def test_a_block_that_ends_badly_leaves_no_file(tmp_path: Path, problem: type[BaseException]) -> None:

    def begin() -> None:
        with TensorWriter(tmp_path / "f", LAYOUT):
            if problem is not AssertionError:  # else the block ends well, but nothing was written
                raise problem

    with pytest.raises(problem):
        begin()
    assert not list(tmp_path.iterdir())
