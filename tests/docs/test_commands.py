"""Every command and every block of Python in README.md and docs/ does what the page says: it is run, small, or at least parsed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs import worker
from tests.docs.extract import LANGUAGES, ROOT, blocks, pages, spans, steps
from tests.docs.parsing import check_named, options, subcommand, subcommands
from tests.docs.rules import CHANGES, PRELUDE, UNRUN

WITH_STEPS = [page for page in pages() if steps(page)]
SLOW = {"docs/gradients.md"}
"""Pages that take minutes on a busy machine. `tests/recipes/test_study.py` has a smaller study in every run."""
MADE = {"docs/cli.md"}
"""Pages that are made from the program itself, by `make docs`."""
OTHERS = {"--co", "--check"}  # options of other programs that sentences name


def _slowly(page: str) -> Any:
    return pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page


@pytest.mark.parametrize("page", map(_slowly, WITH_STEPS))
def test_what_a_page_says_can_be_done(page: str, tmp_path: Path) -> None:
    if all(worker.only_parsed(step) for step in steps(page)):
        for step in steps(page):
            worker.run(step, {})
        return
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.worker", page, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert done.stdout.count(" s  ") >= len(steps(page))


def test_every_subcommand_is_run_on_some_page() -> None:
    typed = [step.text for page in pages() for step in steps(page) if step.language == "shell" and "[OPTIONS]" not in step.text]
    run = {
        subcommand(shlex.split(text, comments=True)[1:])
        for text in typed
        if text.startswith("secateur ") and not worker.unrun(text)
    }
    assert run == set(subcommands())


@pytest.mark.parametrize("page", pages())
def test_blocks_say_what_they_are(page: str) -> None:
    known = {*LANGUAGES, "indented"}
    assert {block.language for block in blocks((ROOT / page).read_text(encoding="utf-8"))} <= known


@pytest.mark.parametrize("page", [page for page in pages() if page not in MADE])
def test_commands_that_sentences_name_exist(page: str) -> None:
    known = options() | OTHERS
    for span in spans(page):
        if span.startswith("secateur "):
            check_named(span)
        elif re.match(r"--\w", span):
            missing = {word.partition("=")[0] for word in span.split() if word.startswith("--")} - known
            assert not missing or all(_in_a_script(option) for option in missing), f"{page}: no command has {missing}"


def _in_a_script(option: str) -> bool:
    return any(f'"{option}"' in script.read_text(encoding="utf-8") for script in (ROOT / "benchmarks").glob("*.py"))


def test_no_rule_is_left_over() -> None:
    texts = {page: "\n".join(step.text for step in steps(page)) for page in pages()}
    for change in CHANGES:
        assert change.old in texts[change.page], change
    assert PRELUDE.keys() <= set(WITH_STEPS)
    everything = [step.text for page in pages() for step in steps(page)]
    idle = [pattern for pattern in UNRUN if not any(re.search(pattern, text) for text in everything)]
    assert set(idle) <= {pattern for pattern in UNRUN if pattern.startswith("^secateur")}, idle
