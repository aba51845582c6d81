"""The page's file. Imports no torch."""

import os
from contextlib import suppress
from pathlib import Path

from secateur.errors import UserError
from secateur.reporting.page import MARK


def write_report(page: str, out: Path, *, force: bool = False) -> int:
    """Write the page, over an earlier report too, all at once. Returns its bytes.

    Raises `UserError` for a path that is something else, or cannot be written.
    """
    if out.is_dir():
        raise UserError(f"--out {str(out)!r} is a directory. Give the name of a file, such as {str(out / 'report.html')!r}.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {str(out)!r} does not end in .html. Give a name such as {str(out.with_suffix('.html'))!r}.")
    if out.exists() and not force and not _is_report(out):
        raise UserError(
            f"--out {str(out)!r} exists and is no report of secateur. Give another --out, or --force to replace it."
        )
    body = page.encode()
    part = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(body)
        os.replace(part, out)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(f"cannot write the report {str(out)!r}: {error.strerror or error}. Give another --out.") from error
    return len(body)


def _is_report(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(2000)
    except OSError:
        return False
