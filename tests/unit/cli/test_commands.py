"""What every command promises: its exit codes, where its words go. The recipes are stand-ins here."""

import json
import re
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.settings import EvalSettings
from secateur.version import __version__
from tests.unit.cli.standing_in import Install, run


def test_version() -> None:
    assert run("--version").stdout == f"secateur {__version__}\n"


def test_an_effort_beside_a_method_is_refused_before_the_recipe(recipe: Install) -> None:
    called = recipe("prune")
    done = run("prune", "m", "--out", "o", "--ratio", "0.2", "--effort", "best", "--method", "flap")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: method = 'flap' and effort = 'best' were given")
    assert not called.calls


@pytest.mark.parametrize(("protocol", "text", "seq_len"), [("wikitext2@2048", "wikitext2", 2048), ("ptb@128", "ptb", 128)])
@pytest.mark.parametrize("local", [None, "a.txt"])
def test_a_protocol_is_a_text_and_a_window(recipe: Install, protocol: Any, text: str, seq_len: int, local: str | None) -> None:
    called = recipe("evaluate")
    done = run("eval", "m", "--protocol", protocol, *(["--text", local] if local else []))
    assert done.exit_code == 0, done.output
    settings = called.calls[0][0][0]
    assert (settings.text, settings.seq_len, settings.bos) == (local or text, seq_len, "auto")
    assert settings == EvalSettings(model="m", protocol=protocol, text=local or text, seq_len=seq_len)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--protocol", "wikitext2@2048", "--seq-len", "512"], "protocol = 'wikitext2@2048' has seq_len = 2048, and 512 was given."),
        (["--protocol", "ptb@128", "--bos", "each"], "protocol = 'ptb@128' has bos = 'auto', and 'each' was given."),
    ],
)  # fmt: skip
def test_what_a_protocol_says_is_not_said_otherwise(given: list[str], said: str) -> None:
    done = run("eval", "m", *given)
    assert (done.exit_code, done.stderr) == (2, f"error: {said} Leave out one of them.\n")


def test_the_text_is_all_there_is_on_stdout(recipe: Install) -> None:
    one = {"prompt": "Once", "text": " upon a [time]", "new_tokens": 3}
    recipe("generate", answer={"completions": [one, {**one, "prompt": "Twice"}], "tokens_per_second": 7.5})
    done = run("generate", "m", "--prompt", "Once", "--prompt", "Twice")
    assert done.stdout == "Once upon a [time]\n\nTwice upon a [time]\n"
    assert "tokens per second  7.5" in done.stderr


def test_a_benchmark_is_a_table(recipe: Install) -> None:
    row = {"batch": 1, "seq_len": 16, "phase": "prefill", "model": "dynamic"} | {
        f"{name}{end}": value for name, value in (("seconds", 0.25), ("tokens_per_second", 64.0), ("speedup", 0.5))
        for end in ("", "_least", "_most", "_low", "_high")
    } | {"flops": 2e9, "flops_per_second": 8e9}  # fmt: skip
    recipe("bench", answer={"cells": [row], "not_faster": ["dynamic is not faster"], "runs": 5})
    done = run("bench", "m", "--dynamic", "0.4")
    assert done.exit_code == 0, done.exception
    shown = done.stdout
    assert "not faster  dynamic is not faster" in shown
    assert "250 (250..250)  64" in shown and "8.00" in shown and "1 x 16" in shown and "0.50 (0.50..0.50)" in shown


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["prune", "m", "--out", "o", "--ratio", "0.3"], "prune"),
        (["eval", "m"], "evaluate"),
        (["inspect", "m"], "inspect"),
        (["demo"], "demo"),
        (["bench", "m", "o"], "bench"),
    ],
)
class TestEveryCommand:
    def test_json_is_all_there_is_on_stdout(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, answer={"out": "π", "layers": [{"layer": 0}], "stock": True, "perplexity": 4.5})
        done = run(*arguments, "--json")
        assert json.loads(done.stdout) == {"out": "π", "layers": [{"layer": 0}], "stock": True, "perplexity": 4.5}
        assert done.exit_code == 0
        assert re.fullmatch(r"(record: \.secateur/(eval|bench)-[0-9a-f]{12}/record\.json\n)?", done.stderr)
        assert bool(done.stderr) == (name in ("evaluate", "bench"))  # others leave it elsewhere, or none

    def test_people_read_a_table(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, answer={"seq_len": 4096})
        done = run(*arguments)
        assert "seq len  4,096" in done.stdout
        assert done.exit_code == 0

    def test_a_mistake_is_one_paragraph(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, problem=UserError("the shard [b]x[/b] is cut short.\nCopy it again."))
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr == "error: the shard [b]x[/b] is cut short. Copy it again.\n"
        assert done.stdout == ""

    def test_a_mistake_is_json_too(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, problem=UserError("no."))
        done = run(*arguments, "--json")
        assert done.exit_code == 2
        assert json.loads(done.stdout) == {"error": "no."}
        assert done.stderr == "error: no.\n"

    def test_a_full_disk_is_a_mistake(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, problem=OSError(28, "No space left on device", "/big/file"))
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr == "error: /big/file: the disk is full: make room, or write somewhere else.\n"

    def test_interrupted(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, problem=KeyboardInterrupt())
        done = run(*arguments)
        assert done.exit_code == 130
        assert done.stderr.startswith("interrupted.")
        assert ("--resume" in done.stderr) == (name == "prune")
        assert done.stderr.count("\n") == 1

    def test_a_bug_says_so(self, recipe: Install, arguments: list[str], name: str) -> None:
        recipe(name, problem=ZeroDivisionError("oops"))
        done = run(*arguments)
        assert isinstance(done.exception, ZeroDivisionError)
        assert "bug in Secateur" in done.exception.__notes__[0]


def test_a_wrong_setting_exits_before_the_recipe(recipe: Install) -> None:
    called = recipe("prune")
    done = run("prune", "m", "--out", "o", "--ratio", "1.5")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ratio = 1.5 is not allowed: it must be the fraction")
    assert not called.calls


@pytest.mark.parametrize(
    "arguments",
    [["prune"], ["prune", "m", "--ratio", "much"], ["prune", "m", "--effort", "most"], ["eval", "m", "--nonsense"], ["lst"]],
)
def test_usage_errors(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Usage: secateur" in done.stderr
    assert "Traceback" not in done.output
