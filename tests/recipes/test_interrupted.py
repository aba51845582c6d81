"""Runs that are killed or interrupted: nothing half-made is left, what was finished is not lost, and nothing is walked twice."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.recipes import job as preparing
from secateur.streaming.collect import Store
from secateur.streaming.memory import fit
from secateur.streaming.walk import Walk
from secateur.surgery.verify import Verifier
from tests.recipes.refusal import command, job, statistics, tree

Make = Callable[..., Path]
LAYERS = 4

KILLER = """
import importlib, os, signal, sys
module, path, call, when = sys.argv.pop(1).split(":")
owner, _, name = path.rpartition(".")
owner = getattr(importlib.import_module(module), owner)
original, calls = getattr(owner, name), []

def killing(*args, **kwargs):
    calls.append(args)
    if len(calls) == int(call) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if len(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, killing)
from secateur.cli.app import main
main()
"""


def kill(model: Path, place: str, *, verb: str = "prune", **options: Any) -> None:
    """Prune or the like in another process that is killed at a place: module:Class.method:number of the call:before or after it."""
    flags = [
        f"--{'eval' if n == 'evaluation' else n.replace('_', '-')}" + ("" if v is True else f"={v}") for n, v in options.items()
    ]
    done = subprocess.run([sys.executable, "-c", KILLER, place, verb, str(model), *flags], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()


def stop(model: Path) -> None:
    """Prune, but interrupt the walk at its third layer."""
    real = Store.save

    def save(self: Store, layer: int, seen: Any) -> None:
        if layer == 2:
            raise KeyboardInterrupt
        real(self, layer, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "save", save)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(model, **job(model))
    assert statistics(model.parent) == ["layer-000.safetensors", "layer-001.safetensors"]


def walked(home: Path) -> list[int]:
    """The layers that walks have finished, from the journals beside an output."""
    lines = [line for path in (home / ".secateur").glob("*/journal.jsonl") for line in path.read_text().splitlines()]
    return [event["number"] for event in map(json.loads, lines) if event["event"] == "layer"]


def plan(runs: Path) -> bytes:
    (path,) = runs.glob("*/plan.json")
    return path.read_bytes()


def model_files(out: Path) -> dict[str, bytes]:
    """All but the two files that say how long it took."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("README.md", "secateur.json")}


@pytest.fixture
def model(checkpoint: Make) -> Path:
    return checkpoint("llama", num_hidden_layers=LAYERS)


def failing(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def no_walk(*_: object, **__: object) -> Any:
    raise AssertionError("walked although all statistics are there")


@pytest.mark.parametrize(
    ("place", "finished", "noted"),  # the journal's line comes after the layer's file
    [("secateur.streaming.hidden:HiddenStates.forget:2:before", 2, 1),
     ("secateur.streaming.tensorfile:TensorWriter.write:25:before", 1, 1), ("secateur.streaming.collect:Store.save:4:after", 4, 3)],
    ids=["between layers", "in a file", "after the last"],
)  # fmt: skip
def test_a_killed_walk_is_resumed_bit_for_bit(model: Path, place: str, finished: int, noted: int) -> None:
    home = model.parent
    whole = secateur.prune(model, **job(model, out=home / "whole", run_dir=home / "runs"))
    kill(model, place, **job(model))
    assert not (home / "out").exists()
    assert statistics(home) == [f"layer-{i:03d}.safetensors" for i in range(finished)]
    resumed = secateur.prune(model, **job(model), resume=True)
    assert walked(home) == [*range(noted), *range(finished, LAYERS)]
    assert plan(home / ".secateur") == plan(home / "runs")
    assert model_files(home / "out") == model_files(home / "whole")
    assert resumed.ratio_reached == whole.ratio_reached
    left = {path.name for path in (home / ".secateur").glob("*/*") if path.suffix != ".json"}
    assert left == {"journal.jsonl", "lock", *statistics(home)}, "no hidden states and no half-written file stay"


@pytest.mark.parametrize(
    ("gradient", "place"),
    [("backprop", "secateur.streaming.collect:Store.save:2:after"), ("backprop", "secateur.streaming.walk:Walk._run:3:before"),
     ("spsa-gates:n=2", "secateur.streaming.hidden:HiddenStates.commit:3:after"),
     ("spsa-weights:n=2", "secateur.streaming.collect:Store.save:2:before")],
    ids=["back", "forward", "first pass", "second pass"],
)  # fmt: skip
def test_killed_gradients_are_resumed_bit_for_bit(model: Path, gradient: str, place: str) -> None:
    home = model.parent
    options = {"method": "fms", "gradient": gradient, "compensate": "none"}
    secateur.prune(model, **job(model, out=home / "whole", run_dir=home / "runs", **options))
    kill(model, place, **job(model, **options))
    assert not (home / "out").exists()
    secateur.prune(model, **job(model, **options), resume=True)
    assert plan(home / ".secateur") == plan(home / "runs")
    assert model_files(home / "out") == model_files(home / "whole")
    found, expected = (
        {p.name: p.read_bytes() for p in runs.glob("*/gradient-*/*")} for runs in (home / ".secateur", home / "runs")
    )
    assert found == expected, "the same statistics, and nothing of the walk is left"
    assert len([name for name in found if name.startswith("layer-")]) == LAYERS


@pytest.mark.parametrize("spilled", [False, True])
def test_spilled_hidden_states_are_resumed_from_alike(model: Path, spilled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    home = model.parent
    secateur.prune(model, **job(model, out=home / "whole", run_dir=home / "runs"))
    monkeypatch.setattr(preparing, "fit", lambda *a, **k: replace(fit(*a, **k), spill=spilled))
    stop(model)
    monkeypatch.setattr(preparing, "fit", lambda *a, **k: replace(fit(*a, **k), spill=not spilled))
    secateur.prune(model, **job(model), resume=True)
    assert walked(home) == [*range(LAYERS)]
    assert (plan(home / ".secateur"), model_files(home / "out")) == (plan(home / "runs"), model_files(home / "whole"))


@pytest.fixture
def stopped(model: Path) -> Path:
    """A model whose walk was interrupted at its third layer."""
    stop(model)
    return model


def test_without_resume_a_walk_begins_anew(stopped: Path) -> None:
    secateur.prune(stopped, **job(stopped))
    assert walked(stopped.parent) == [0, 1, 0, 1, 2, 3]


def test_resume_with_nothing_to_resume(model: Path) -> None:
    secateur.prune(model, **job(model), resume=True)
    assert walked(model.parent) == [0, 1, 2, 3]


@pytest.mark.parametrize("end", [bytes(512), b""], ids=["zeros", "cut"])
def test_hidden_states_that_a_power_failure_lost_are_not_gone_on_from(stopped: Path, end: bytes) -> None:
    for path in (stopped.parent / ".secateur").glob("*/hidden-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-512] + end)
    secateur.prune(stopped, **job(stopped), resume=True)
    assert walked(stopped.parent) == [0, 1, 0, 1, 2, 3]


def test_another_ratio_or_method_does_not_walk_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = model.parent
    secateur.prune(model, **job(model))
    secateur.prune(model, **job(model, out=home / "all", method="wanda-all", compensate="none"))
    assert walked(home) == [*range(LAYERS), *range(LAYERS)], "other inputs are looked at"
    monkeypatch.setattr(Walk, "layers", no_walk)
    for number, (method, compensate) in enumerate([("flap", "least-squares"), ("wanda-sp", "bias"), ("wanda-all", "none")]):
        made = secateur.prune(model, **job(model, out=home / str(number), ratio=0.5, method=method, compensate=compensate))
        assert made.ratio_reached == pytest.approx(0.5, abs=0.05)


def test_a_damaged_statistic_is_gathered_again(model: Path) -> None:
    home = model.parent
    secateur.prune(model, **job(model))
    (path,) = (home / ".secateur").glob("*/layer-002.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    secateur.prune(model, **job(model, out=home / "again"))
    assert walked(home) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert model_files(home / "again") == model_files(home / "out")


def test_a_method_that_needs_no_statistics_does_not_walk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk, "layers", no_walk)
    assert secateur.prune(model, **job(model, method="magnitude", compensate="none")).ratio_reached > 0.2
    assert statistics(model.parent) == []


def test_a_run_killed_while_writing_leaves_no_output_and_its_leftovers_go(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = model.parent
    kill(model, "secateur.surgery.verify:Verifier.check:2:before", **job(model))
    names = {path.name for path in home.iterdir()} - {"model", "text.txt", ".secateur"}
    assert [name.startswith(".out.partial-") for name in names] == [True]
    monkeypatch.setattr(Walk, "layers", no_walk)
    secateur.prune(model, **job(model))
    assert {path.name for path in home.iterdir()} == {"model", "text.txt", ".secateur", "out"}


def test_a_model_that_was_being_replaced_when_the_run_was_killed_comes_back(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = model.parent
    secateur.prune(model, **job(model, ratio=0.2))
    before = tree(home / "out")
    kill(model, "secateur.export.huggingface:Path.rename:1:after", **job(model), force=True)
    assert not (home / "out").exists()
    monkeypatch.setattr(Verifier, "check", failing)
    with pytest.raises(secateur.UserError, match="Input/output error"):
        secateur.prune(model, **job(model), force=True)
    assert tree(home / "out") == before
    assert tree(home), "and no leftovers"


def test_an_interrupted_run_says_how_to_go_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = tree(model.parent)
    monkeypatch.setattr(Verifier, "check", interrupt)
    done = command("prune", str(model), **job(model))
    assert done.exit_code == 130 and "--resume" in done.stderr and "Traceback" not in done.stderr
    assert tree(model.parent) == before and len(statistics(model.parent)) == LAYERS
