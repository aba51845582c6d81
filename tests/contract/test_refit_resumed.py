"""Contract of the walk that refits, where it is interrupted, damaged, or meets what it cannot refit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.errors import UserError
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.module import ModuleSource
from secateur.surgery.refit import Refit, Rewritten
from tests.contract.masking import Float64, layers_of
from tests.contract.refitting import DEEPER, done, kept_of, task
from tests.contract.tiny import tiny_model
from tests.reference.sequential import small_weights


class Stopped(Exception):
    """The process dies here."""


def interrupted(refit: Refit, layer: int) -> None:
    """Walk until a layer is stored, and no further."""
    with Float64():
        walk = refit.run()
        for number in walk:
            if number == layer:
                break
        walk.close()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("spill", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_an_interrupted_walk_is_resumed_to_the_bit(model_type: str, layer: int, spill: bool, tmp_path: Path):
    model = tiny_model(model_type, **DEEPER.get(model_type, {"num_hidden_layers": 4}))
    source, layers = ModuleSource.of(model), kept_of(model, model_type)
    expected = files(done(task(source, layers, tmp_path / "whole", tokens=24)).directory)
    refit = task(source, layers, tmp_path / "run", tokens=24, spill=spill)
    interrupted(refit, layer)
    with Float64():
        assert list(replace(refit, resume=True).run()) == [*range(layer + 1, 4)], "what is there is not done again"
    assert files(refit.rewritten.directory) == expected


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("at", ["save", "commit"])
def test_a_walk_that_died_between_two_files_loses_one_layer(
    at: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama", num_hidden_layers=4)
    source, layers = ModuleSource.of(model), kept_of(model, "llama")
    expected = files(done(task(source, layers, tmp_path / "whole")).directory)
    refit = task(source, layers, tmp_path / "run")
    owner: Any = Rewritten if at == "save" else HiddenStates
    true = getattr(owner, at)

    def dies(self: Any, *args: Any) -> None:
        true(self, *args)
        if args[0] == layer + (at == "commit"):
            raise Stopped

    monkeypatch.setattr(owner, at, dies)
    with pytest.raises(Stopped):
        interrupted(refit, 3)
    monkeypatch.undo()
    with Float64():
        walked = list(replace(refit, resume=True).run())
    assert walked == [*range(layer + (at == "save"), 4)]
    assert files(refit.rewritten.directory) == expected


def test_without_resume_a_walk_begins_anew(tmp_path: Path):
    model = tiny_model("llama", num_hidden_layers=4)
    source, layers = ModuleSource.of(model), kept_of(model, "llama")
    expected = files(done(task(source, layers, tmp_path / "whole")).directory)
    refit = task(source, layers, tmp_path / "run")
    interrupted(refit, 1)
    assert list(refit.rewritten.directory.glob("pruned-*")) and list(refit.rewritten.directory.glob("hidden-*"))
    assert files(done(refit).directory) == expected


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("damage", ["cut", "gone", "garbage"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_damaged_file_is_made_again(layer: int, damage: str, resume: bool, tmp_path: Path):
    model = tiny_model("llama", num_hidden_layers=4)
    refit = task(ModuleSource.of(model), kept_of(model, "llama"), tmp_path / "run", resume=resume)
    expected = files(done(refit).directory)
    path = refit.rewritten.path(layer)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"garbage")
    assert refit.rewritten.finished(4) == layer
    with Float64():
        list(refit.run())
    assert files(refit.rewritten.directory) == expected


def test_damaged_streams_are_made_again(tmp_path: Path):
    model = tiny_model("llama", num_hidden_layers=4)
    source, layers = ModuleSource.of(model), kept_of(model, "llama")
    expected = files(done(task(source, layers, tmp_path / "whole")).directory)
    for name in ("hidden", "pruned"):
        refit = task(source, layers, tmp_path / name)
        interrupted(refit, 1)
        path = tmp_path / name / f"{name}-002.safetensors"
        body = path.read_bytes()
        path.write_bytes(body[:-400] + bytes(400))  # as a power failure leaves a file that was not synced
        with Float64():
            assert list(replace(refit, resume=True).run()) == [0, 1, 2, 3]
        assert files(refit.rewritten.directory) == expected


def test_finished_walks_do_nothing(tmp_path: Path):
    model = tiny_model("llama")
    refit = task(ModuleSource.of(model), kept_of(model, "llama"), tmp_path / "run")
    before = files(done(refit).directory)
    refit.report.clear()
    assert list(refit.run()) == [] and refit.report == []
    assert files(refit.rewritten.directory) == before


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_changed_keeps_every_bit_it_was_stored_with(dtype: torch.dtype, stored: torch.dtype, tmp_path: Path):
    """Whatever is computed in: a ridge so large that nothing moves."""
    model = tiny_model("qwen2", dtype=stored)
    source, layers = ModuleSource.of(model), kept_of(model, "qwen2")
    refit = task(source, layers, tmp_path / "run", ridge=1e30, dtype=dtype)
    assert list(refit.run()) == [0, 1]
    for number, kept in enumerate(layers):
        original = small_weights(model, number, kept)
        found = refit.rewritten.load(number)
        assert "self_attn.o_proj.weight" in found
        assert all(torch.equal(x, original[name]) for name, x in found.items() if x.dim() == 2)


@pytest.mark.parametrize("bad", ["weight", "activation"])
def test_what_is_not_finite_is_blamed_on_its_layer(bad: str, tmp_path: Path):
    model = tiny_model("llama", dtype=torch.float32)
    layers = kept_of(model, "llama")
    with torch.no_grad():
        if bad == "weight":
            layers_of(model)[1].mlp.down_proj.weight[0, 0] = torch.nan
        else:
            layers_of(model)[1].mlp.up_proj.weight.mul_(1e38)
    says = "layer 1: .*down_proj.* holds NaN" if bad == "weight" else "layer 1 gives NaN or infinity .* Compute in bf16 or fp32"
    with pytest.raises(UserError, match=says):
        list(task(ModuleSource.of(model), layers, tmp_path / "run", dtype=torch.float32).run())
    assert refit_files(tmp_path / "run") == ["layer-000.safetensors"]


def refit_files(directory: Path) -> list[str]:
    """Files of layers, and of what was half written."""
    return sorted(p.name for pattern in ("layer-*", "*.partial") for p in directory.glob(pattern))
