"""Safetensors files, read and written piece by piece with plain file reads.

A memory mapping would count every page it has touched as resident for as long as it lives; a read into a tensor of ours counts
once and is gone with the tensor. Format: https://huggingface.co/docs/safetensors (8-byte length, JSON header, raw data).
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes; the reference implementation's own limit
CHUNK = 32 << 20
WINDOW = 4 << 20  # bytes of neighbouring rows that are read at once


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file. `start` and `stop` are byte offsets from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """The header of one safetensors file; reads open the file anew and close it."""

    path: Path
    entries: Mapping[str, Entry]
    inode: int
    """Of the file that had this header: another one may take its name."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        with _reading(path) as file:
            found = os.fstat(file.fileno())
            size = found.st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise _broken(path, f"it has {size} bytes and its header claims {length}")
            text = file.read(length)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting without end
            raise _broken(path, "its header is not JSON") from error
        if not isinstance(header, dict):
            raise _broken(path, "its header is not a JSON object")
        entries = {k: _entry(path, k, v, 8 + length) for k, v in header.items() if k != "__metadata__"}
        need = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != need:
                raise _broken(path, f"tensor {name!r} starts at byte {entry.start} and the one before it ends at {need}")
            need = entry.stop
        if need != size:
            raise _broken(path, f"it has {size} bytes and its header needs {need}")
        return cls(path=path, entries=entries, inode=found.st_ino)

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """The whole tensor, in memory of its own, or in `out` if that has its type and shape."""
        entry = self.entries[name]
        if out is None or out.dtype != entry.dtype or tuple(out.shape) != entry.shape:
            out = torch.empty(entry.shape, dtype=entry.dtype)
        with _reading(self.path, self.inode) as file:
            _read_into(file.fileno(), out, entry.start, self.path)
        return out

    def read_rows(self, name: str, rows: Int[Tensor, " row"]) -> Tensor:
        """The given indices of the first dimension, ascending.

        Only their bytes are read where they are few; where they are many in short runs, all bytes between them are read and most
        kept, since a call for each run would cost more.
        """
        entry = self.entries[name]
        width = (entry.stop - entry.start) // entry.shape[0]
        out = torch.empty((len(rows), *entry.shape[1:]), dtype=entry.dtype)
        between = torch.empty((0, *entry.shape[1:]), dtype=entry.dtype)
        with _reading(self.path, self.inode) as file:
            for at, stop in _pieces(rows, max(1, WINDOW // max(width, 1))):
                part = rows[at:stop]
                first, span = int(part[0]), int(part[-1] - part[0]) + 1
                if span == stop - at:
                    _read_into(file.fileno(), out[at:stop], entry.start + first * width, self.path)
                    continue
                if len(between) < span:
                    between = torch.empty((span, *entry.shape[1:]), dtype=entry.dtype)
                _read_into(file.fileno(), between[:span], entry.start + first * width, self.path)
                torch.index_select(between, 0, part - first, out=out[at:stop])
        return out


class TensorWriter:
    """Writes one safetensors file whose layout is known beforehand, tensor by tensor, in any order.

    The full size is reserved on opening, so a full disk shows before any work is lost. `close` syncs and checks completeness.
    As a context it closes when the block ends well, and removes the file when it does not. An `OSError` names the file.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, (dtype, shape) in layout.items():
            length = prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + length]}
            offset += length
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.path, self._missing = path, set(layout)
        self._entries = {k: _entry(path, k, v, 8 + len(text)) for k, v in header.items() if k != "__metadata__"}
        self._file = path.open("w+b", buffering=0)
        try:
            self._put(memoryview(len(text).to_bytes(8, "little") + text), 0)
            self._reserve(8 + len(text), offset)
        except OSError:
            self.discard()
            raise

    def write(self, name: str, x: Tensor) -> None:
        entry = self._entries[name]
        assert x.dtype == entry.dtype and tuple(x.shape) == entry.shape, (name, x.dtype, tuple(x.shape), entry)
        self._put(_bytes(x.contiguous()), entry.start)
        self._missing.discard(name)

    def copy(self, name: str, source: TensorFile, key: str) -> None:
        """Copy a tensor's bytes in pieces, whatever its size."""
        entry, mine = source.entries[key], self._entries[name]
        assert entry.stop - entry.start == mine.stop - mine.start, (name, key)
        piece = torch.empty(min(CHUNK, entry.stop - entry.start), dtype=torch.uint8)
        for at in range(entry.start, entry.stop, CHUNK):
            part = piece[: min(CHUNK, entry.stop - at)]
            with _reading(source.path, source.inode) as file:
                _read_into(file.fileno(), part, at, source.path)
            self._put(_bytes(part), mine.start + at - entry.start)
        self._missing.discard(name)

    def close(self, *, sync: bool = True) -> None:
        assert not self._missing, f"never written: {sorted(self._missing)[:3]}"
        if sync:
            with _named(self.path):
                os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def discard(self) -> None:
        """Close and remove the file, so that what was reserved for it is free again."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if not self._file.closed:
                self.discard()

    def _reserve(self, start: int, length: int) -> None:
        if not length or not hasattr(os, "posix_fallocate"):  # macOS has none: there a full disk shows at the write
            return
        try:
            with _named(self.path):
                os.posix_fallocate(self._file.fileno(), start, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot reserve
                raise

    def _put(self, data: memoryview, at: int) -> None:
        with _named(self.path):
            while data:
                done = os.pwrite(self._file.fileno(), data[:CHUNK], at)
                data, at = data[done:], at + done


def _entry(path: Path, name: str, body: Any, base: int) -> Entry:
    try:
        shape, (start, stop) = tuple(body["shape"]), body["data_offsets"]
        kind = body["dtype"]
        if any(type(n) is not int or n < 0 for n in (*shape, start, stop)) or not isinstance(kind, str):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise _broken(path, f"tensor {name!r} is described as {str(body)[:200]}") from None
    if kind not in DTYPES:
        raise UserError(
            f"the weights file {path} holds tensor {name!r} in the type {kind}, which cannot be read. Types that can be: "
            f"{', '.join(DTYPES)}. If the model is quantised, take the unquantised one."
        )
    dtype = DTYPES[kind]
    if stop - start != prod(shape) * dtype.itemsize:
        raise _broken(path, f"tensor {name!r} of shape {list(shape)} claims {stop - start} bytes")
    return Entry(dtype=dtype, shape=shape, start=base + start, stop=base + stop)


@contextmanager
def _reading(path: Path, inode: int | None = None) -> Iterator[BinaryIO]:
    try:
        with path.open("rb", buffering=0) as file:
            if inode is not None and os.fstat(file.fileno()).st_ino != inode:
                raise UserError(f"the weights file {path} was replaced while it was being read. Run the same command again.")
            yield file
    except OSError as error:
        raise UserError(f"cannot read the weights file {path}: {error.strerror}. Is it still there, and whole?") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Calls on a descriptor say what failed, but not of which file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"the weights file {path} is truncated or corrupt: {why}. Download or copy it again.")


def _bytes(x: Tensor) -> memoryview:
    return memoryview(x.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _read_into(descriptor: int, out: Tensor, start: int, path: Path) -> None:
    data = _bytes(out)
    while data:
        done = os.preadv(descriptor, [data], start)
        if done == 0:
            raise _broken(path, f"it ends at byte {start}")
        data, start = data[done:], start + done


def _pieces(rows: Int[Tensor, " row"], window: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the positions in `rows` to read at once: one run of consecutive rows, or neighbouring runs of which at
    least a quarter of the rows in between is wanted, over at most `window` rows unless it is a single run."""
    if len(rows) == 0:
        return
    breaks = (torch.diff(rows) != 1).nonzero().flatten() + 1
    runs = torch.cat([breaks.new_zeros(1), breaks, breaks.new_full((1,), len(rows))]).tolist()
    firsts, lasts = rows[runs[:-1]].tolist(), rows[[r - 1 for r in runs[1:]]].tolist()
    start = 0
    for run in range(1, len(runs)):
        if run < len(runs) - 1:
            span = lasts[run] - firsts[start] + 1
            if span <= window and 4 * (runs[run + 1] - runs[start]) >= span:
                continue
        yield runs[start], runs[run]
        start = run
