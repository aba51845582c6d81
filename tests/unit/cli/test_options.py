"""Every flag of every command: which there are, and that each arrives at the recipe. The recipes are stand-ins here."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from secateur.cli.app import app
from secateur.cli.bench import bench
from secateur.cli.evaluate import evaluate
from secateur.cli.export import export
from secateur.cli.generate import generate
from secateur.cli.prune import prune
from secateur.dynamic_settings import BenchSettings, GenerateSettings, ProbedEvalSettings
from secateur.export_settings import ExportSettings
from secateur.keywords import EvalOptions, ExportOptions, PruneOptions, TaskOptions
from secateur.reporter import Reporter
from secateur.settings import EvalSettings, PruneSettings, Settings
from secateur.task_settings import TaskSettings
from tests.unit.cli.standing_in import Install, run

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
        "--trust-remote-code", "--run-dir", "--json",
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
    given = {
        n: p.default for n, p in inspect.signature(export).parameters.items() if n not in ("json", "run_dir", "model", "to")
    }
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


def test_inspect_passes_its_option(recipe: Install) -> None:
    called = recipe("inspect")
    assert run("inspect", "dir", "--trust-remote-code").exit_code == 0
    assert called.calls[0][0][0] == "dir"
    assert called.calls[0][1] == {"trust_remote_code": True}
