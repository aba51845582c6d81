"""Runs all that a page says, in the order of the page, in one fresh process: `python -m tests.docs.worker PAGE DIRECTORY`."""

import contextlib
import io
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from secateur.cli.app import app
from tests.docs.extract import Step, pages, steps
from tests.docs.parsing import PARSERS, parse_secateur, subcommand
from tests.docs.rules import CHANGES, OFFLINE, PRELUDE, READING, SMALL, UNRUN
from tests.docs.sandbox import furnish


class Failed(Exception):
    """What a command answered, where that was not what it should."""


def unrun(text: str) -> str | None:
    """Why a command is only parsed, if it is."""
    return next((why for pattern, why in UNRUN.items() if re.search(pattern, text)), None)


def changed(step: Step) -> str:
    """The text of a step with the page's changes."""
    text = step.text
    for change in CHANGES:
        if change.page == step.page:
            text = text.replace(change.old, change.new)
    return text


def run_words(text: str) -> list[str]:
    """The arguments of a `secateur` command, those that keep it small and offline behind them."""
    words = shlex.split(text, comments=True)[1:]
    name = subcommand(words)
    matching = [key for key in SMALL.keys() | OFFLINE.keys() if _matches(key, name, words)]
    added = [
        given
        for key in matching
        for option, given in [OFFLINE.get(key, ("", ""))]
        if option not in words and "--tasks" not in words
    ]
    ends = [SMALL[key] for key in SMALL if key in matching]
    if name == "eval" and "--text" in " ".join(added):
        ends.append(SMALL["eval --text"])
    return [*words, *shlex.split(" ".join([*added, *ends]))]


def _matches(key: str, name: str, words: list[str]) -> bool:
    return key == name or (key.startswith(f"{name} --") and key.removeprefix(f"{name} ") in words)


def run_secateur(text: str) -> str:
    """What the command prints. Raises `Failed` unless it succeeds."""
    words = run_words(text)
    found = CliRunner().invoke(app, words, prog_name="secateur", catch_exceptions=False)
    if found.exit_code:
        raise Failed(f"secateur {shlex.join(words)}\nanswered {found.exit_code}:\n{found.output}")
    return found.output


def run_python(text: str, where: str, names: dict[str, Any]) -> str:
    """What the block prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, where, "exec"), names)
    return printed.getvalue()


def given() -> dict[str, Any]:
    """The names that the pages' Python takes for granted, by their own words."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from secateur.calibration.blocks import draw_blocks
    from secateur.calibration.text import read_texts
    from secateur.calibration.tokens import tokenise

    model = "path/to/model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    blocks = draw_blocks(tokenise(read_texts("text.txt", None)[0], tokenizer), samples=8, seq_len=64, seed=0).ids
    inputs = tokenizer("import os\n", return_tensors="pt", return_token_type_ids=False)
    dense = AutoModelForCausalLM.from_pretrained(model).eval()
    small = {"samples": 8, "seq_len": 64, "evaluation": "held_out.txt"}
    return {"tokenizer": tokenizer, "blocks": blocks, "inputs": inputs, "dense": dense, "SMALL": small}


def run(step: Step, names: dict[str, Any]) -> str:
    """One step, or its parsing. Raises whatever says that the page is wrong."""
    text = changed(step)
    if step.language == "python":
        if not names:
            names.update(given())
        return run_python(text, f"{step.page}:{step.line}", names)
    program = text.split()[0]
    if why := unrun(text):
        if program not in PARSERS:
            raise Failed(f"{program} is on the list of what is not run, and nothing can parse it")
        PARSERS[program](text)
        return f"(parsed: {why})"
    if program != "secateur":
        raise Failed(f"no test knows how to run {program}: add what it takes to tests/docs")
    if "[OPTIONS]" in text:
        return _usage(text)
    if repeated(step):
        parse_secateur(text)
        return "(parsed: it is run on another page)"
    return run_secateur(text)


def only_parsed(step: Step) -> bool:
    """Whether a step leaves nothing to run."""
    return step.language == "shell" and (bool(unrun(changed(step))) or "[OPTIONS]" in step.text)


def repeated(step: Step) -> bool:
    """Whether a command that writes nothing has been run on an earlier page, or line, with all options but those of size."""
    words = shlex.split(step.text, comments=True)[1:]
    return subcommand(words) in READING and _first_places()[_shape(words)] != (step.page, step.line)


@cache
def _first_places() -> dict[tuple[str, ...], tuple[str, int]]:
    found: dict[tuple[str, ...], tuple[str, int]] = {}
    for step in (step for page in pages() for step in steps(page)):
        if step.text.startswith("secateur ") and "[OPTIONS]" not in step.text and not unrun(step.text):
            words = shlex.split(step.text, comments=True)[1:]
            found.setdefault(_shape(words), (step.page, step.line))
    return found


def _shape(words: list[str]) -> tuple[str, ...]:
    name = subcommand(words)
    sizes = {word for key in SMALL if _matches(key, name, words) for word in SMALL[key].split()} - {"--tasks"}
    return (name, *sorted(word for word in words if word.startswith("--") and word not in sizes))


def _usage(text: str) -> str:
    words = [word for word in text.split()[1:] if word.islower()]
    if words and words != ["study"]:
        subcommand(words)
    return "(usage)"


def main(page: str, place: Path) -> int:
    """0 if all is as the page says; else the first step that is not is printed."""
    warnings.simplefilter("ignore")
    furnish(place)
    os.chdir(place)
    names: dict[str, Any] = {}
    for command in PRELUDE.get(page, ()):
        run_secateur(command)
    for step in steps(page):
        start = time.perf_counter()
        try:
            answer = run(step, names)
        except (Exception, SystemExit) as error:
            print(f"{step}\n")
            print(error if isinstance(error, Failed) else "".join(traceback.format_exception(error)))
            return 1
        print(f"{time.perf_counter() - start:5.1f} s  {step}")
        if os.environ.get("SHOW_ANSWERS"):
            print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
