"""The tests of the pages can fail: what is wrong on a page is found, and nothing that is typed is overlooked."""

from pathlib import Path

import pytest

from tests.docs.extract import Step, blocks
from tests.docs.parsing import Misspelled, check_named, parse_make, parse_pip, parse_pytest, parse_script, parse_secateur
from tests.docs.worker import Failed, run, run_words

WRONG = "secateur eval model --text t.txt --no-such-option"


def step(text: str, *, language: str = "shell", page: str = "docs/none.md") -> Step:
    return Step(page=page, line=1, language=language, text=text)


@pytest.mark.parametrize("text", [WRONG, "secateur bench", "secateur prune a b c --out d"])
def test_the_programs_own_parser_refuses(text: str) -> None:
    with pytest.raises(Misspelled):
        parse_secateur(text)


@pytest.mark.parametrize("text", ["secateur prun model", "secateur study models m"])
def test_an_unknown_subcommand_is_refused(text: str) -> None:
    with pytest.raises(Misspelled, match="no subcommand"):
        parse_secateur(text)


@pytest.mark.parametrize("text", ["secateur prune --stock", "secateur prun", "secateur --verison"])
def test_sentences_name_what_exists(text: str) -> None:
    with pytest.raises(Misspelled):
        check_named(text)


def test_what_sentences_may_name() -> None:
    for text in (
        "secateur",
        "secateur --version",
        "secateur study",
        "secateur eval MODEL --tasks ...",
        "secateur study gradients",
    ):
        check_named(text)


@pytest.mark.parametrize(
    "text",
    [
        "python benchmarks/seven_b.py make DIR --sideways 3",
        "python benchmarks/nothing.py",
        "python benchmarks/seven_b.py score|make",
    ],
)
def test_scripts_refuse_through_their_own_argparse(text: str) -> None:
    with pytest.raises(Misspelled):
        parse_script(text)


def test_make_pip_and_pytest_must_find_what_is_named() -> None:
    parse_make("make demo  # a remark")
    parse_pip("pip install -c constraints.txt '.[eval]'")
    for parse, text in ((parse_make, "make nothing"), (parse_pytest, "pytest tests/nothing.py")):
        with pytest.raises(Misspelled):
            parse(text)
    for text in ("pip install 'secateur[nothing]'", "pip install no-such-package", "pip install -c nowhere.txt ."):
        with pytest.raises(Misspelled):
            parse_pip(text)


@pytest.mark.parametrize("text", ["curl https://example.org", "cd smaller", "python -c 1", "secateur-nothing"])
def test_a_program_that_no_test_can_run_is_refused(text: str) -> None:
    with pytest.raises(Failed, match="no test knows"):
        run(step(text), {})


def test_a_command_that_fails_and_python_that_raises_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failed, match="answered 2"):
        run(step("secateur prune nowhere --ratio 0.3 --out o"), {})
    with pytest.raises(NameError):
        run(step("nothing", language="python"), {"known": 1})


def test_what_is_appended_follows_what_is_given() -> None:
    assert run_words("secateur prune m --out o")[-8:] == [
        "--calibration", "text.txt", "--eval", "held_out.txt", "--samples", "8", "--seq-len", "64",
    ]  # fmt: skip
    assert "held_out.txt" not in run_words("secateur prune m --out o --calibration own.txt")
    assert run_words("secateur eval m --tasks piqa")[-6:] == ["--tasks", "rows.jsonl", "--limit", "4", "--batch", "4"]
    assert run_words("secateur eval m --text t")[-2:] == ["--max-tokens", "1024"]


def test_blocks_are_found_wherever_they_stand() -> None:
    page = (
        "text\n\n    secateur ls \\\n        methods\n    secateur demo\n\n- a list\n\n  ```console\n  $ make demo\n  an answer\n"
        "  ```\n\n```python\nx = [\n    1\n]\n```\n\n```text\n$ no command\n```\n\n```\nnameless\n```\n"
    )
    found = blocks(page)
    assert [block.language for block in found] == ["indented", "console", "python", "text", ""]
    assert found[0].lines == ["secateur ls \\", "methods", "secateur demo"] and found[0].line == 3
    assert found[1].lines == ["$ make demo", "an answer"]
    assert found[2].lines == ["x = [", "    1", "]"]
