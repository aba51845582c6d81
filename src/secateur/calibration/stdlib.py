"""Text that every CPython installation has: the standard library's sources and the `pydoc` topics.

The embedded default model is trained, calibrated and evaluated on it, so that the main job runs with no network. The three
splits share no module and no topic. The lists are pinned; the *text* is the running Python's own, so figures may move on
another Python version: compare `fingerprint` with the one recorded in the model's provenance.
"""

import hashlib
import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from secateur.errors import UserError

Split = Literal["train", "calibration", "evaluation"]

# Modules kept from 3.11 to 3.14, so that a newer Python still has most of the text.
CALIBRATION_MODULES = (
    "argparse", "calendar", "cmd", "configparser", "filecmp", "gettext", "ipaddress", "linecache", "shutil", "socketserver",
)  # fmt: skip
EVALUATION_MODULES = (
    "contextlib", "copy", "csv", "fractions", "graphlib", "gzip", "heapq", "json", "queue", "random", "sched", "shlex",
    "string", "tempfile", "textwrap",
)  # fmt: skip
TRAIN_MODULES = (
    "__future__", "_collections_abc", "_markupbase", "_pydecimal", "_pyio", "_strptime", "_threading_local", "_weakrefset",
    "abc", "aifc", "ast", "asyncio", "asynchat", "asyncore", "base64", "bdb", "bisect", "bz2", "cProfile", "cgi", "cgitb",
    "chunk", "code", "codecs", "codeop", "collections", "colorsys", "compileall", "concurrent", "copyreg", "crypt", "ctypes",
    "curses", "dataclasses", "datetime", "dbm", "difflib", "dis", "doctest", "email", "enum", "fileinput", "fnmatch",
    "ftplib", "functools", "genericpath", "getopt", "getpass", "glob", "hashlib", "hmac", "html", "http", "imaplib",
    "imghdr", "imp", "importlib", "inspect", "io", "keyword", "locale", "logging", "lzma", "mailbox", "mailcap", "mimetypes",
    "modulefinder", "multiprocessing", "netrc", "nntplib", "ntpath", "numbers", "opcode", "operator", "optparse", "os",
    "pathlib", "pdb", "pickle", "pickletools", "pipes", "pkgutil", "platform", "plistlib", "poplib", "posixpath", "pprint",
    "profile", "pstats", "pty", "py_compile", "pyclbr", "pydoc", "quopri", "re", "reprlib", "rlcompleter", "runpy",
    "secrets", "selectors", "shelve", "signal", "site", "smtpd", "smtplib", "sndhdr", "socket", "sqlite3", "ssl", "stat",
    "statistics", "subprocess", "sunau", "symtable", "sysconfig", "tabnanny", "tarfile", "telnetlib", "threading", "timeit",
    "token", "tokenize", "tomllib", "trace", "traceback", "tracemalloc", "turtle", "types", "typing", "unittest", "urllib",
    "uu", "uuid", "venv", "warnings", "wave", "weakref", "webbrowser", "wsgiref", "xdrlib", "xml", "xmlrpc", "zipapp",
    "zipfile", "zipimport", "zoneinfo",
)  # fmt: skip
CALIBRATION_TOPICS = ("assignment", "class", "formatstrings", "imaginary", "numbers", "specialattrs", "try")
EVALUATION_TOPICS = ("comparisons", "exceptions", "for", "import", "lambda", "naming", "strings", "typesmapping")

# Topics of the training side that repeat a held-out one word for word.
OVERLAPPING_TOPICS = ("augassign", "compound", "dynamic-features", "execmodel", "in")

# A tokenizer must never see this inside a document: it separates documents.
SEPARATOR = "<|endoftext|>"


def documents(split: Split) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of every document of a split, in a fixed order; modules this Python lacks are left out."""
    held_out = {*CALIBRATION_TOPICS, *EVALUATION_TOPICS, *OVERLAPPING_TOPICS}
    topics: dict[str, str] = pydoc_data.topics.topics
    modules, names = {
        "train": (TRAIN_MODULES, tuple(t for t in sorted(topics) if t not in held_out)),
        "calibration": (CALIBRATION_MODULES, CALIBRATION_TOPICS),
        "evaluation": (EVALUATION_MODULES, EVALUATION_TOPICS),
    }[split]
    root = Path(sysconfig.get_path("stdlib"))
    for module in modules:
        for path in _sources(root, module):
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")
    for name in names:
        if name in topics:
            yield f"topic:{name}", topics[name]


def text(split: Split) -> str:
    """All documents of a split, joined by the separator token's spelling."""
    found = [body.replace(SEPARATOR, "") for _, body in documents(split)]
    if not any(found):
        raise UserError(
            f"this Python has no standard-library sources under {sysconfig.get_path('stdlib')!r}, which the built-in "
            f"text needs. Give a text of your own (`--calibration FILE`, `--text FILE`), or use a full CPython installation."
        )
    return SEPARATOR.join(found)


def fingerprint(split: Split) -> str:
    """SHA-256 over the names and texts of a split, in order."""
    digest = hashlib.sha256()
    for name, body in documents(split):
        digest.update(f"{name}\0{len(body)}\0{body}".encode())
    return digest.hexdigest()


def _sources(root: Path, module: str) -> list[Path]:
    if (single := root / f"{module}.py").is_file():
        return [single]
    hidden = {"test", "tests", "__pycache__"}
    return [p for p in sorted((root / module).rglob("*.py")) if not hidden & set(p.relative_to(root).parts)]
