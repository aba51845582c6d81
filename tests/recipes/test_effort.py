"""What an effort stands for, and the jobs that it makes: their results, their model cards, and what a killed one keeps."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.recipes.presets import DEFAULT, EFFORTS, resolved
from secateur.settings import PruneSettings
from secateur.surgery.sequential import Sequential
from tests.recipes.refusal import command, job, refused
from tests.recipes.test_interrupted import kill, model_files
from tests.recipes.tiny_checkpoint import text_beside

Make = Callable[..., Path]

# Effort -> method, allocation, compensation.
MEANS = {
    "fast": ("flap", "uniform-floor", "least-squares"),
    "balanced": ("sensitivity", "global", "least-squares"),
    "best": ("sensitivity", "global", "sequential"),
}


def settings(**options: Any) -> PruneSettings:
    return PruneSettings(model="m", dry_run=True, ratio=0.2, **options)


def chosen(found: Any) -> tuple[str, str, str]:
    return found.method, found.allocation, found.compensate


def plan(out: Path) -> dict[str, Any]:
    return json.loads((out / "secateur.json").read_text())["plan"]


def written_command(out: Path) -> list[str]:
    """The words of the command line on the model card, without the program's name."""
    (line,) = (line for line in (out / "README.md").read_text().splitlines() if line.startswith("    secateur prune"))
    return shlex.split(line)[1:]


def test_every_effort_has_a_meaning_and_one_is_meant_without_any():
    assert EFFORTS.keys() == MEANS.keys()
    for effort, means in MEANS.items():
        for layers in (2, 32):
            found = resolved(settings(effort=effort), layers)
            assert chosen(found) == means and found.effort is None
            assert (found.protect, found.gradient) == ("", None)
    assert DEFAULT == "balanced"
    assert resolved(settings(), 2) == resolved(settings(effort="balanced"), 2)


@pytest.mark.parametrize("effort", MEANS)
def test_what_is_given_beside_an_effort_wins(effort: str):
    method, allocation, compensate = MEANS[effort]
    assert chosen(resolved(settings(effort=effort, compensate="none"), 2)) == (method, allocation, "none")
    assert chosen(resolved(settings(effort=effort, allocation="uniform"), 2)) == (method, "uniform", compensate)
    assert resolved(settings(effort=effort, protect="0", gradient="spsa-gates"), 2).protect == "0"
    assert resolved(settings(effort=effort, gradient="spsa-gates"), 2).gradient == "spsa-gates"


def test_a_method_leaves_the_efforts_aside():
    assert chosen(resolved(settings(method="sensitivity"), 2)) == ("sensitivity", "uniform", "least-squares")
    assert chosen(resolved(settings(method="flap:metric=wifn", compensate="sequential"), 2)) == (
        "flap:metric=wifn", "uniform", "sequential",
    )  # fmt: skip


@pytest.mark.parametrize("effort", [*MEANS, None])
def test_the_command_on_the_card_makes_the_same_model_again(
    effort: str | None, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = checkpoint("llama")
    first = secateur.prune(model, **job(model, effort=effort))
    means = MEANS[effort or DEFAULT]
    assert (first.method, first.allocation, first.compensate) == means
    assert first.verified <= 1e-5
    out = Path(first.out)
    recorded = plan(out)["settings"]
    assert (recorded["method"], recorded["allocation"], recorded["compensate"], recorded["effort"]) == (*means, None)
    words = written_command(out)
    said = dict(zip(words, words[1:], strict=False))
    assert (said["--method"], said["--allocation"], said["--compensate"]) == means
    assert "--effort" not in words
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(model, elsewhere / model.name)
    shutil.copy(text_beside(model), elsewhere)
    monkeypatch.chdir(elsewhere)
    done = CliRunner().invoke(app, words, prog_name="secateur")
    assert done.exit_code == 0, done.output
    assert plan(elsewhere / out.name) == plan(out)
    assert model_files(elsewhere / out.name) == model_files(out)
    assert written_command(elsewhere / out.name) == words


@pytest.mark.parametrize("effort", MEANS)
def test_every_effort_can_make_a_stock_checkpoint(effort: str, checkpoint: Make):
    model = checkpoint("llama")
    result = secateur.prune(model, **job(model, effort=effort, format="stock"))
    assert (
        result.stock
        and result.allocation == ("uniform-scored" if effort != "fast" else "uniform-floor")
        and result.compensate == MEANS[effort][2]
    )
    plain, info = AutoModelForCausalLM.from_pretrained(result.out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in plain.parameters()) == result.parameters_after


@pytest.mark.parametrize("compensate", ["sequential", "sequential:ridge=0.01", "sequential:matrices=readers,ridge=0.01"])
@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "bloom"])
def test_sequential_serves_any_method_and_loads(model_type: str, compensate: str, checkpoint: Make):
    model = checkpoint(model_type)
    result = secateur.prune(model, **job(model, method="magnitude", compensate=compensate))
    assert result.compensate == "sequential" and result.verified <= 1e-5
    assert sum(p.numel() for p in secateur.load(result.out).parameters()) == result.parameters_after


def test_the_ridge_can_be_given_either_way(checkpoint: Make):
    model = checkpoint("llama")
    found = [
        model_files(Path(secateur.prune(model, **job(model, method="flap", out=model.parent / out, **options)).out))
        for out, options in {
            "a": {"compensate": "sequential", "ridge": 0.5},
            "b": {"compensate": "sequential:ridge=0.5"},
            "c": {"compensate": "sequential:ridge=5.0"},
            "d": {"compensate": "sequential:matrices=readers", "ridge": 0.5},
        }.items()
    ]
    assert found[0] == found[1]
    assert len({one["model.safetensors"] for one in found}) == 3


@pytest.mark.parametrize("ridge", ["-0.5", "-2", "inf", "nan"])
def test_a_ridge_below_zero_that_is_not_the_sign_to_choose_is_refused(ridge: str, checkpoint: Make):
    model = checkpoint("llama")
    message = refused(model, **job(model, compensate=f"sequential:ridge={ridge}"))
    assert "sequential's ridge is" in message and "or -1 to choose it" in message
    for allowed in (-1.0, 0.0, 0.5):
        assert Sequential(ridge=allowed).ridge == allowed


def test_a_forecast_counts_the_walk_that_refits(checkpoint: Make):
    model = checkpoint("llama")
    plain, refitting = (
        secateur.prune(model, **job(model, method="flap", compensate=c), dry_run=True) for c in ("none", "sequential")
    )
    assert refitting.walks == plain.walks + 1
    assert refitting.disk_bytes > plain.disk_bytes and refitting.seconds > plain.seconds
    assert refitting.parameters_after == plain.parameters_after


def refits(home: Path) -> list[int]:
    """Layers that were refitted, from the journals beside an output."""
    lines = [line for path in (home / ".secateur").glob("*/journal.jsonl") for line in path.read_text().splitlines()]
    return [event["layer"] for event in map(json.loads, lines) if event["event"] == "refitted"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_refit_goes_on_where_it_was(when: str, checkpoint: Make):
    model = checkpoint("llama", num_hidden_layers=4)
    home = model.parent
    whole = secateur.prune(model, **job(model, effort="best", out=home / "whole", run_dir=home / "runs"))
    kill(model, f"secateur.surgery.refit:Rewritten.save:2:{when}", **job(model, effort="best"))
    assert not (home / "out").exists() and refits(home) == [0]
    done = command("prune", str(model), **job(model, effort="best"), resume=True)
    assert done.exit_code == 0, done.output
    assert refits(home) == ([0, 1, 2, 3] if when == "before" else [0, 2, 3]), "a finished layer is not refitted again"
    assert model_files(home / "out") == model_files(Path(whole.out))
    assert not list((home / ".secateur").rglob("pruned-*")) + list((home / ".secateur").rglob("hidden-*"))


def test_the_same_plan_is_refitted_once(checkpoint: Make, monkeypatch: pytest.MonkeyPatch):
    model = checkpoint("llama")
    first = secateur.prune(model, **job(model, effort="best"))
    monkeypatch.setattr("secateur.surgery.refit.Layer.run", lambda *_: pytest.fail("refitted again"))
    again = secateur.prune(model, **job(model, effort="best", out=model.parent / "again"))
    assert model_files(Path(again.out)) == model_files(Path(first.out))


def test_equal_layers_by_score_say_what_is_known_of_their_form(checkpoint: Make) -> None:
    def foretold(model_type: str, **overrides: Any) -> tuple[bool, str]:
        model = checkpoint(model_type, **overrides)
        found = secateur.prune(model, **job(model, allocation="uniform-scored", dry_run=True))
        return found.stock, " ".join(found.notes)

    assert foretold("llama", hidden_size=64) == (True, ""), (
        "some numbers of heads are written as Mistral, and which is not known"
    )
    stock, notes = foretold("llama", hidden_size=64, attention_bias=True)
    assert not stock and "known once it is known how many heads stay" in notes and "refuses" in notes
    stock, notes = foretold("gpt2")
    assert not stock
    model = checkpoint("llama", hidden_size=64, attention_bias=True)
    assert secateur.prune(model, **job(model, allocation="uniform-scored", format="stock")).stock
