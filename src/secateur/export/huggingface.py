"""The output directory: what Hugging Face users expect to find in one, put in place all at once."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.errors import UserError
from secateur.plan import RECORD

# Files beside the weights that describe the same tokenizer and the same terms of use as before.
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "*.jinja",
    "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip


def check_output(out: Path, *, force: bool) -> None:
    """Refuse, before anything expensive, a directory that is in use."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"the output {str(out)!r} exists and is not a directory. Give another --out.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(
            f"the output directory {str(out)!r} exists and is not empty. Give another --out, or --force to replace it."
        )
    if out.is_dir() and force and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UserError(
            f"the output directory {str(out)!r} is not empty and holds no model: --force replaces models only. Give another --out."
        )
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the directory {str(parent)!r} for the output: {error.strerror}. Give another --out."
        ) from error
    if not os.access(parent, os.W_OK):
        raise UserError(f"no permission to write in {str(parent)!r}. Give another --out.")


def disk_free(directory: Path) -> int:
    """Free bytes where a directory is or would be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def check_disk(directory: Path, need: int) -> None:
    free = disk_free(directory)
    if need > free:
        raise UserError(
            f"too little disk under {str(directory)!r}: {need / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free. "
            f"Free some, or give --out and --run-dir elsewhere."
        )


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends well, and vanishes when it does not.

    What a killed run left behind is removed by the next one. A full disk is a `UserError`.
    """
    out = out.absolute()
    head = f".{out.name}.partial-"
    for stale in out.parent.glob(head + "*"):
        shutil.rmtree(stale, ignore_errors=True)
    fresh = out.parent / (head + uuid.uuid4().hex[:8])
    fresh.mkdir()
    try:
        yield fresh
        _replace(fresh, out)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(
            f"writing {str(out)!r} failed: {error.strerror or error}. Nothing was left there; what was measured is kept, so the "
            f"same command goes on from there once this is mended."
        ) from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _replace(fresh: Path, out: Path) -> None:
    if not out.exists():
        fresh.rename(out)
        return
    old = fresh.with_name(fresh.name + "-old")
    out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old)


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, chat template, generation settings and licence, byte for byte; a hub cache's links become files."""
    for path in sorted({p for pattern in COMPANIONS for p in source.glob(pattern) if p.is_file()}):
        shutil.copyfile(path, target / path.name)


def save_config(config: Any, target: Path) -> None:
    config.save_pretrained(target)


def save_record(record: dict[str, Any], target: Path) -> None:
    (target / RECORD).write_text(json.dumps(record, sort_keys=True) + "\n")
