"""What every command promises: its flags, its exit codes, where its words go. The recipes are stand-ins here."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from secateur.api import EvalOptions, ExportOptions, PruneOptions, TaskOptions
from secateur.cli.app import app
from secateur.cli.bench import bench
from secateur.cli.evaluate import evaluate
from secateur.cli.export import export
from secateur.cli.generate import generate
from secateur.cli.prune import prune
from secateur.dynamic_settings import BenchSettings, GenerateSettings, ProbedEvalSettings
from secateur.errors import UserError
from secateur.export_settings import ExportSettings
from secateur.reporter import Reporter
from secateur.settings import EvalSettings, PruneSettings, Settings
from secateur.task_settings import TaskSettings
from secateur.version import __version__

MACHINE = {"--max-memory", "--device", "--dtype", "--trust-remote-code"}
PROBING = {
    "--dynamic", "--small", "--state", "--attention", "--paper", "--griffin", "--memory", "--rechoose", "--calibration", "--samples",
    "--seed",
}  # fmt: skip
FLAGS = {
    "prune": MACHINE | {
        "--out", "--ratio", "--target-params", "--target-size", "--effort", "--method", "--gradient", "--compensate", "--allocation",
        "--axes", "--protect", "--round-to", "--format", "--ridge", "--calibration", "--eval", "--allow-overlap", "--samples",
        "--seq-len", "--seed", "--run-dir", "--resume", "--force", "--push-to-hub", "--private", "--dry-run", "--json",
    },
    "eval": MACHINE | (PROBING - {"--rechoose"}) | {
        "--text", "--seq-len", "--max-tokens", "--bos", "--batch", "--allow-overlap", "--json", "--tasks", "--limit", "--num-fewshot",
        "--protocol", "--run-dir",
    },
    "generate": (MACHINE - {"--max-memory"}) | PROBING | {
        "--prompt", "--max-new-tokens", "--seq-len", "--save-state", "--run-dir", "--json",
    },
    "bench": (MACHINE - {"--max-memory"}) | PROBING | {"--batch", "--seq-len", "--new-tokens", "--runs", "--run-dir", "--json"},
    "export": {
        "--to", "--dtype", "--out", "--force", "--tokenizer", "--check", "--text", "--check-tokens",
        "--trust-remote-code", "--json",
    },
    "inspect": {"--trust-remote-code", "--json"},
    "ls": {"--json"},
    "demo": {"--json"},
    "report": {"--out", "--force", "--json"},
    "compare": {
        "--methods", "--out", "--ratios", "--seeds", "--calibration", "--eval", "--allow-overlap", "--samples", "--seq-len",
        "--device", "--dtype", "--json",
    },
    "study gradients": {
        "--out", "--estimators", "--ratios", "--seeds", "--calibration", "--eval", "--allow-overlap", "--samples", "--seq-len",
        "--device", "--dtype", "--json",
    },
}  # fmt: skip


@dataclass
class Recipe:
    """Stands in for a recipe: remembers what it was called with, and answers or raises."""

    answer: dict[str, Any] = field(default_factory=dict)
    problem: BaseException | None = None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> "Recipe":
        self.calls.append((args, kwargs))
        if self.problem is not None:
            raise self.problem
        return self

    def to_json(self) -> dict[str, Any]:
        return self.answer

    def table(self) -> dict[str, Any]:
        return self.answer


Install = Callable[..., Recipe]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    monkeypatch.chdir(tmp_path)  # where commands leave their records

    def install(name: str, **values: Any) -> Recipe:
        stand_in, module = Recipe(**values), ModuleType(f"secateur.recipes.{name}")
        setattr(module, name, stand_in)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return stand_in

    return install


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args, prog_name="secateur")


def test_flags_are_frozen() -> None:
    commands: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
    for group in [name for name, command in commands.items() if hasattr(command, "commands")]:
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    found = {name: {o for p in c.params for o in p.opts if o.startswith("--")} - {"--help"} for name, c in commands.items()}
    assert found == FLAGS


@pytest.mark.parametrize(
    ("command", "settings", "options"), [(prune, PruneSettings, PruneOptions), (evaluate, ProbedEvalSettings, EvalOptions)]
)
def test_flags_settings_and_keywords_agree(command: Callable[..., None], settings: type[Settings], options: Any) -> None:
    given = {n: p.default for n, p in inspect.signature(command).parameters.items() if n not in ("json", "model")}
    given = {
        n: value for n, value in given.items() if command is prune or n not in ("tasks", "limit", "num_fewshot", "run_dir")
    }
    checked = settings(model="m", **({"ratio": 0.5, "dry_run": True} if settings is PruneSettings else {}), **{
        name: value for name, value in given.items() if name not in ("ratio", "dry_run")
    })  # fmt: skip
    defaults = {name: field.default for name, field in settings.model_fields.items() if name != "model"}
    assert given.keys() == defaults.keys() == set(options.__annotations__) | ({"dry_run"} & defaults.keys())
    assert {n: getattr(checked, n) for n in given if n not in ("ratio", "dry_run")} == {
        n: value for n, value in defaults.items() if n not in ("ratio", "dry_run")
    }


def test_version() -> None:
    assert run("--version").stdout == f"secateur {__version__}\n"


def test_prune_passes_every_option(recipe: Install) -> None:
    called = recipe("prune", answer={"out": "d"})
    options = {
        "out": "d", "target-params": "5M", "method": "wanda-sp", "gradient": "spsa-gates:n=4", "compensate": "bias",
        "allocation": "global",
        "axes": "ffn",
        "protect": "0-2,-1", "round-to": "64", "calibration": "a.txt", "eval": "b.txt", "samples": "3", "seq-len": "7",
        "seed": "5", "max-memory": "2GiB", "device": "cuda:1", "dtype": "bf16", "run-dir": "r", "format": "stock",
        "push-to-hub": "me/x",
    }  # fmt: skip
    flags = ["--allow-overlap", "--private", "--resume", "--force", "--trust-remote-code"]
    done = run("prune", "m", *(part for name, value in options.items() for part in (f"--{name}", value)), *flags)
    assert done.exit_code == 0, done.output
    (settings, report), _ = called.calls[0]
    assert isinstance(report, Reporter)
    assert settings.to_json() == {
        "model": "m", "out": "d", "ratio": None, "target_params": "5M", "target_size": None, "method": "wanda-sp", "effort": None,
        "gradient": "spsa-gates:n=4", "compensate": "bias", "allocation": "global",
        "calibration": "a.txt", "evaluation": "b.txt", "allow_overlap": True, "samples": 3, "seq_len": 7,
        "seed": 5, "protect": "0-2,-1", "axes": ["ffn"], "round_to": 64, "format": "stock", "push_to_hub": "me/x",
        "private": True, "ridge": None, "max_memory": "2GiB",
        "device": "cuda:1", "dtype": "bf16", "run_dir": "r", "resume": True, "force": True, "dry_run": False,
        "trust_remote_code": True,
    }  # fmt: skip


def test_flags_settings_and_keywords_of_an_export_agree() -> None:
    given = {n: p.default for n, p in inspect.signature(export).parameters.items() if n not in ("json", "model", "to")}
    assert given == {n: field.default for n, field in ExportSettings.model_fields.items() if n not in ("model", "to")}
    assert set(ExportOptions.__annotations__) == given.keys()


def test_export_passes_every_option(recipe: Install) -> None:
    called = recipe("export")
    flags = ["--no-tokenizer", "--no-check", "--force", "--trust-remote-code", "--text", "t.txt", "--check-tokens", "9"]
    done = run("export", "m", "--to", "gguf", "--dtype", "q8_0", "--out", "m.gguf", *flags)
    assert done.exit_code == 0, done.output
    assert called.calls[0][0][0] == ExportSettings(
        model="m", to="gguf", dtype="q8_0", out=Path("m.gguf"), tokenizer=False, check=False, text="t.txt", check_tokens=9,
        force=True, trust_remote_code=True,
    )  # fmt: skip


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_prune_passes_an_effort(recipe: Install, effort: str) -> None:
    called = recipe("prune")
    assert run("prune", "m", "--out", "o", "--ratio", "0.2", "--effort", effort).exit_code == 0
    (settings, _), _ = called.calls[0]
    assert (settings.effort, settings.method, settings.compensate, settings.allocation) == (effort, None, None, None)


@pytest.mark.parametrize("spelled", ["sequential", "sequential:matrices=readers", "least-squares:ridge=0.1"])
def test_prune_passes_a_compensation_with_its_options(recipe: Install, spelled: str) -> None:
    called = recipe("prune")
    assert run("prune", "m", "--out", "o", "--ratio", "0.2", "--compensate", spelled).exit_code == 0
    assert called.calls[0][0][0].compensate == spelled


def test_an_effort_beside_a_method_is_refused_before_the_recipe(recipe: Install) -> None:
    called = recipe("prune")
    done = run("prune", "m", "--out", "o", "--ratio", "0.2", "--effort", "best", "--method", "flap")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: method = 'flap' and effort = 'best' were given")
    assert not called.calls


def test_eval_passes_every_option(recipe: Install) -> None:
    called = recipe("evaluate")
    done = run("eval", "m", "--text", "t.txt", "--seq-len", "64", "--max-tokens", "1000", "--bos", "each", "--dtype", "fp32")
    assert done.exit_code == 0, done.output
    assert called.calls[0][0][0] == EvalSettings(model="m", text="t.txt", seq_len=64, max_tokens=1000, bos="each", dtype="fp32")


def test_flags_settings_and_keywords_of_tasks_agree() -> None:
    given = {n: p.default for n, p in inspect.signature(evaluate).parameters.items() if n in TaskSettings.model_fields}
    defaults = {n: field.default for n, field in TaskSettings.model_fields.items() if n not in ("model", "tasks")}
    assert {n: value for n, value in given.items() if n not in ("model", "tasks")} == defaults
    assert set(TaskOptions.__annotations__) == defaults.keys()


def test_eval_on_tasks_passes_every_option(recipe: Install) -> None:
    plain, called = recipe("evaluate"), recipe("evaluate_tasks")
    options = {
        "tasks": "boolq, rows.jsonl", "limit": "9", "num-fewshot": "0", "batch": "3", "device": "cuda:1", "dtype": "bf16",
        "dynamic": "0.4", "attention": "none", "memory": "low", "calibration": "c.txt", "samples": "8", "seq-len": "7", "seed": "2",
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = run("eval", "m", *flags, "--paper", "--trust-remote-code", "--json")
    assert done.exit_code == 0, done.output
    assert called.calls[0][0][0] == TaskSettings(
        model="m", tasks=("boolq", "rows.jsonl"), limit=9, num_fewshot=0, batch=3, device="cuda:1", dtype="bf16", dynamic=0.4,
        attention="none", memory="low", calibration="c.txt", samples=8, seq_len=7, seed=2, paper=True, trust_remote_code=True,
    )  # fmt: skip
    assert not plain.calls


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


def test_eval_of_a_probed_model_passes_every_option(recipe: Install) -> None:
    plain, called = recipe("evaluate"), recipe("evaluate_probed")
    options = [
        "--dynamic",
        "0.4",
        "--batch",
        "3",
        "--attention",
        "heads",
        "--paper",
        "--memory",
        "low",
        "--calibration",
        "c.txt",
    ]
    done = run("eval", "m", "--text", "t.txt", *options, "--allow-overlap", "--samples", "9", "--seed", "2")
    assert done.exit_code == 0, done.output
    assert called.calls[0][0][0] == ProbedEvalSettings(
        model="m", text="t.txt", dynamic=0.4, batch=3, attention="heads", paper=True, memory="low", calibration="c.txt",
        allow_overlap=True, samples=9, seed=2,
    )  # fmt: skip
    assert not plain.calls


def test_generate_passes_every_option(recipe: Install) -> None:
    called = recipe("generate")
    options = {
        "max-new-tokens": "3", "dynamic": "0.4", "save-state": "s", "attention": "none", "memory": "low", "rechoose": "5",
        "calibration": "c.txt", "samples": "9", "seq-len": "7", "seed": "2", "device": "cuda:1", "dtype": "bf16",
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = run("generate", "m", "--prompt", "a", "--prompt", "b", *flags, "--paper", "--trust-remote-code")
    assert done.exit_code == 0, done.output
    settings = called.calls[0][0][0]
    assert settings == GenerateSettings(
        model="m", prompt=("a", "b"), max_new_tokens=3, dynamic=0.4, save_state=Path("s"), attention="none", memory="low",
        rechoose=5, calibration="c.txt", samples=9, seq_len=7, seed=2, device="cuda:1", dtype="bf16", paper=True,
        trust_remote_code=True,
    )  # fmt: skip


def test_bench_passes_every_option(recipe: Install) -> None:
    called = recipe("bench")
    options = {
        "batch": "1,20", "seq-len": "16, 128", "new-tokens": "0", "runs": "3", "dynamic": "0.4", "state": "s", "attention": "none",
        "memory": "low", "rechoose": "5", "device": "cuda:1", "dtype": "bf16",
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = run("bench", "m", "o", "p", *flags, "--paper", "--trust-remote-code")
    assert done.exit_code == 0, done.output
    settings = called.calls[0][0][0]
    assert settings == BenchSettings(
        model="m", others=("o", "p"), batch=(1, 20), seq_len=(16, 128), new_tokens=0, runs=3, dynamic=0.4, state=Path("s"),
        attention="none", memory="low", rechoose=5, device="cuda:1", dtype="bf16", paper=True, trust_remote_code=True,
    )  # fmt: skip
    assert BenchSettings(**settings.to_json()) == settings  # as the process that measures memory is told


@pytest.mark.parametrize(
    ("command", "settings"), [(generate, GenerateSettings), (bench, BenchSettings)], ids=["generate", "bench"]
)
def test_flags_and_settings_of_probing_agree(command: Callable[..., None], settings: type[Settings]) -> None:
    given = {
        n: p.default
        for n, p in inspect.signature(command).parameters.items()
        if n not in ("json", "model", "prompt", "run_dir")
    }
    assert given.keys() == settings.model_fields.keys() - {"model", "prompt"}
    needed: Any = {"prompt": "p"} if settings is GenerateSettings else {"dynamic": 0.4}
    assert settings(model="m", **{**given, **needed}) == settings(model="m", **needed)


@pytest.mark.parametrize("arguments", [["eval", "m"], ["generate", "m", "--prompt", "p"], ["bench", "m", "o"]])
@pytest.mark.parametrize(
    "given", [["--paper"], ["--state", "s"], ["--calibration", "c"], ["--attention", "kv"], ["--memory", "low"]]
)
def test_what_only_probing_uses_is_refused_without_it(arguments: list[str], given: list[str]) -> None:
    done = run(*arguments, *given)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {given[0].removeprefix('--')} = ")
    assert "has no effect without `dynamic`" in done.stderr


def test_the_text_is_all_there_is_on_stdout(recipe: Install) -> None:
    one = {"prompt": "Once", "text": " upon a [time]", "new_tokens": 3}
    recipe("generate", answer={"completions": [one, {**one, "prompt": "Twice"}], "tokens_per_second": 7.5})
    done = run("generate", "m", "--prompt", "Once", "--prompt", "Twice")
    assert done.stdout == "Once upon a [time]\n\nTwice upon a [time]\n"
    assert "tokens per second  7.5" in done.stderr


def test_a_benchmark_is_a_table(recipe: Install) -> None:
    row = {"batch": 1, "seq_len": 16, "phase": "prefill", "model": "dynamic"} | {
        f"{name}{end}": value for name, value in (("seconds", 0.25), ("tokens_per_second", 64.0), ("speedup", 0.5))
        for end in ("", "_least", "_most")
    } | {"flops": 2e9, "flops_per_second": 8e9}  # fmt: skip
    recipe("bench", answer={"cells": [row], "not_faster": ["dynamic is not faster"], "runs": 5})
    done = run("bench", "m", "--dynamic", "0.4")
    assert done.exit_code == 0, done.exception
    shown = done.stdout
    assert "not faster  dynamic is not faster" in shown
    assert "250 (250..250)  64" in shown and "8.00" in shown and "1 x 16" in shown and "0.50 (0.50..0.50)" in shown


def test_inspect_passes_its_option(recipe: Install) -> None:
    called = recipe("inspect")
    assert run("inspect", "dir", "--trust-remote-code").exit_code == 0
    assert called.calls[0][0][0] == "dir"
    assert called.calls[0][1] == {"trust_remote_code": True}


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
