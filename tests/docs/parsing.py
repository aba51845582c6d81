"""Whether a command would be understood, without running it."""

import argparse
import itertools
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from secateur.cli.app import app
from tests.docs.extract import ROOT


class Misspelled(Exception):
    """A command that names what does not exist."""


def subcommands() -> dict[str, Any]:
    """`study gradients` -> the command that parses its options, for every subcommand."""
    found: dict[str, Any] = {}
    waiting = list(get_command(app).commands.items())  # type: ignore[attr-defined]
    while waiting:
        name, command = waiting.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            found[name] = command
        else:
            waiting += [(f"{name} {one}", other) for one, other in inner.items()]
    return found


def subcommand(words: list[str]) -> str:
    """The subcommand that the words begin with, after `secateur`."""
    known = subcommands()
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
    if name is None:
        raise Misspelled(f"secateur has no subcommand {' '.join(words[:2])!r}")
    return name


def parse_secateur(text: str) -> None:
    """By the program's own parser. Raises `Misspelled`."""
    words = shlex.split(text, comments=True)[1:]
    name = subcommand(words)
    try:
        subcommands()[name].make_context(name, words[len(name.split()) :])
    except Exception as error:  # a usage error, whose class belongs to whichever click typer has
        raise Misspelled(f"{text}: {getattr(error, 'message', error)}") from error


def check_named(text: str) -> None:
    """A command that a sentence names, perhaps without all that it needs: its subcommand and its options must exist."""
    words = text.split()[1:]
    while words and not words[0][0].isalpha():
        if words[0].startswith("-") and not _is_option(words[0], get_command(app)):
            raise Misspelled(f"secateur has no option {words[0]}")
        words = words[1:]
    if words and words[0] not in dict(get_command(app).commands):  # type: ignore[attr-defined]
        raise Misspelled(f"secateur has no subcommand {words[0]!r}")
    if words and " ".join(words[:2]) not in subcommands() and words[0] not in subcommands():
        return  # a group alone
    if words:
        command = subcommands()[subcommand(words)]
        if wrong := [word for word in words if word.startswith("--") and not _is_option(word, command)]:
            raise Misspelled(f"secateur {subcommand(words)} has no option {wrong[0]}")


def _is_option(word: str, command: Any) -> bool:
    return word.partition("=")[0] in {
        "--help",
        "-h",
        *(name for param in command.params for name in (*param.opts, *param.secondary_opts)),
    }


def options() -> set[str]:
    """Every option of every subcommand."""
    named = {
        name for command in subcommands().values() for param in command.params for name in (*param.opts, *param.secondary_opts)
    }
    return {"--help", "--version", *named}


def parse_script(text: str) -> None:
    """By the script's own argparse; `a|b` stands for two commands, and `[--x]` for one with --x. Raises `Misspelled`."""
    for words in _spelled_out(text.partition("#")[0]):
        script = ROOT / words[1]
        if not script.exists():
            raise Misspelled(f"{words[1]} does not exist")
        _parse(str(script), words[2:])


class _Parsed(Exception):
    pass


def _parse(script: str, words: list[str]) -> None:
    """Runs the script to where its arguments are parsed, and no further."""
    real, argv = argparse.ArgumentParser.parse_args, sys.argv

    def parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        raise _Parsed

    argparse.ArgumentParser.parse_args = parse  # type: ignore[assignment,method-assign]
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except _Parsed:
        return
    except SystemExit as error:
        raise Misspelled(f"{script} does not take {' '.join(words)}") from error
    finally:
        del sys.path[0]
        argparse.ArgumentParser.parse_args, sys.argv = real, argv  # type: ignore[method-assign]
    raise Misspelled(f"{script} parses no arguments")


def _spelled_out(text: str) -> Iterator[list[str]]:
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", text))
    alternatives = [word.split("|") if "|" in word and not word.startswith("-") else [word] for word in words]
    for chosen in itertools.product(*alternatives):
        yield list(chosen)


def parse_make(text: str) -> None:
    """`make -n` finds the targets."""
    words = shlex.split(text, comments=True)
    done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Misspelled(done.stderr)


def parse_pip(text: str) -> None:
    """Files, extras of this package and other packages must be those of pyproject.toml."""
    words = shlex.split(text, comments=True)[2:]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = {_name(one) for one in itertools.chain(project["dependencies"], *extras.values())} | {"secateur"}
    for word in words:
        own = re.fullmatch(r"(?:secateur|\.)(?:\[([\w,-]+)\])?", word)
        if own and (unknown := set((own[1] or "").split(",")) - {""} - set(extras)):
            raise Misspelled(f"secateur has no extra {unknown}")
        if not own and not word.startswith("-") and not (ROOT / word).exists() and _name(word) not in known:
            raise Misspelled(f"{word} is neither a file nor a package that pyproject.toml names")


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!;]", requirement)[0].lower()


def parse_pytest(text: str) -> None:
    """The files exist."""
    for word in shlex.split(text, comments=True):
        if word.endswith(".py") and not (ROOT / word).exists():
            raise Misspelled(f"{word} does not exist")


PARSERS = {
    "secateur": parse_secateur,
    "python": parse_script,
    "make": parse_make,
    "pip": parse_pip,
    "pytest": parse_pytest,
}
