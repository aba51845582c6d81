"""The output directory: what Hugging Face users expect to find in one, put in place all at once."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.errors import UserError
from secateur.plan import RECORD
from secateur.settings import spell_bytes

# Files beside the weights that describe the same tokenizer and the same terms of use as before.
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "*.jinja",
    "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip


def check_output(out: Path, *, force: bool, inputs: Mapping[str, Path], model: Path | None = None) -> None:
    """Refuse, before anything expensive, a directory that is in use. Nothing is made or changed.

    `inputs`: what must not be replaced with `out`, by what it is to the user (`the run directory`). `model`: a local one, which
    must not be written into either.
    """
    where = out.absolute().resolve()
    given = {what: path.absolute().resolve() for what, path in inputs.items()}
    if model is not None:
        given["the model"] = model.absolute().resolve()
        if given["the model"] in (where, *where.parents):
            raise UserError(
                f"--out {str(out)!r} is the model or lies in it, and the original is never changed. Give another --out."
            )
    for what, path in given.items():
        if where in (path, *path.parents):
            raise UserError(f"--out {str(out)!r} is or holds {what}, which would be replaced with it. Give another --out.")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"the output {str(out)!r} exists and is a file or a link, not a directory. Give another --out.")
    if os.path.ismount(out):
        raise UserError(f"the output {str(out)!r} is a mount point, which cannot be replaced. Give a directory in it as --out.")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise UserError(
                f"the output directory {str(out)!r} exists and is not empty. Give another --out, or --force to replace it."
            )
        if not _holds_model(out):
            raise UserError(
                f"the output directory {str(out)!r} is not empty and holds no model: --force replaces models only. Give "
                f"another --out."
            )
    parent = existing(where.parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(
            f"cannot write the output {str(out)!r}: {str(parent)!r} is not a directory that you may write in. Give another --out."
        )


def _holds_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def existing(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def disk_free(directory: Path) -> int:
    """Free bytes where a directory is or would be."""
    return shutil.disk_usage(existing(directory)).free


def check_disk(needs: Mapping[Path, int]) -> None:
    """Refuse what will not fit. `needs`: bytes by directory, there already or not; those on one disk are added up."""
    together: dict[int, list[Path]] = {}
    for directory in needs:
        together.setdefault(existing(directory).stat().st_dev, []).append(directory)
    for directories in together.values():
        need, free = sum(needs[d] for d in directories), disk_free(directories[0])
        if need > free:
            raise UserError(
                f"too little disk under {' and '.join(repr(str(d)) for d in directories)}: {spell_bytes(need)} are needed and "
                f"{spell_bytes(free)} are free. Free some, or write to another disk: --out, and where there is one --run-dir."
            )


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends well, and vanishes when it does not.

    What a killed run left behind is removed by the next one. A full disk is a `UserError`.
    """
    out = out.resolve() if out.name == ".." else out.absolute().parent.resolve() / out.name  # a/../b needs no a
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _recover(out)
        fresh = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
        fresh.mkdir()
    except OSError as error:
        raise UserError(f"cannot write in {str(out.parent)!r}: {error.strerror}. Give another --out.") from error
    try:
        yield fresh
        _sync(fresh)
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


def _recover(out: Path) -> None:
    """Remove what killed runs left beside `out`; put a model back that was on its way to be replaced."""
    left = re.compile(re.escape(f".{out.name}.partial-") + "[0-9a-f]{8}(?P<old>-old)?")
    for stale in [path for path in out.parent.iterdir() if left.fullmatch(path.name)]:
        if stale.name.endswith("-old") and not out.exists():
            stale.rename(out)
        else:
            shutil.rmtree(stale, ignore_errors=True)


def _replace(fresh: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        fresh.rename(out)
        return
    old = fresh.with_name(fresh.name + "-old")
    out.rename(old)
    try:
        fresh.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the next run to this place tries again


def _sync(directory: Path) -> None:
    """So that not even a power failure leaves the final name with less than everything under it."""
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, chat template, generation settings and licence, byte for byte; a hub cache's links become files."""
    for path in sorted({p for pattern in COMPANIONS for p in source.glob(pattern) if p.is_file()}):
        shutil.copyfile(path, target / path.name)


def save_config(config: Any, target: Path) -> None:
    """With the modelling file of unequal layers, where it is such a configuration."""
    config.save_pretrained(target)


def save_record(record: dict[str, Any], target: Path) -> None:
    (target / RECORD).write_text(json.dumps(record, sort_keys=True) + "\n")
