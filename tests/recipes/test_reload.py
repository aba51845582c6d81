"""What its own loader makes of a written directory is compared with the masked original before it appears."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.recipes import reload, reload_apart, steps
from secateur.recipes.reload import APART, HERE, SKIPPED, STREAMED
from secateur.surgery import verify
from tests.contract.tiny import MODEL_TYPES
from tests.recipes.refusal import job

Make = Callable[..., Path]


def no_room(monkeypatch: pytest.MonkeyPatch, *, elsewhere: int = 0) -> None:
    """None to load a model in this process; `elsewhere`: bytes that are free for others."""
    monkeypatch.setattr(reload, "SMALL", 0)
    monkeypatch.setattr(reload, "resident", lambda: 1 << 50)
    monkeypatch.setattr(reload, "free", lambda: elsewhere)


def pruned(model: Path, **options: Any) -> Any:
    return secateur.prune(model, **job(model, **{"method": "flap", "compensate": "bias", "evaluation": "none", **options}))


@pytest.mark.parametrize("format", ["auto", "unequal"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_says_the_same_when_loaded_whole(checkpoint: Make, model_type: str, format: str) -> None:
    model = checkpoint(model_type)
    found = pruned(model, format=format, allocation="uniform-floor").reloaded
    assert found["how"] == HERE and found["error"] < 1e-5
    assert found["greedy"] >= 16 and found["tokens"] in (32, 64)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("llama", {"rms_norm_eps": 0.1}),
        ("llama", {"hidden_act": "relu"}),
        ("mistral", {"sliding_window": 31}),
        ("gemma2", {"final_logit_softcapping": 0.1}),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neo", {"window_size": 31}),
        ("phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    ],
)
def test_a_configuration_that_means_something_else_is_not_published(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, model_type: str, changes: dict[str, Any]
) -> None:
    model, save = checkpoint(model_type), steps.save_config

    def wrongly(config: Any, directory: Path) -> None:
        save(config, directory)
        path = directory / "config.json"
        body = json.loads(path.read_text())
        assert any(body.get(name) != value for name, value in changes.items())
        path.write_text(json.dumps(body | changes))

    monkeypatch.setattr(steps, "save_config", wrongly)
    for how in (HERE, STREAMED):
        if how == STREAMED:
            no_room(monkeypatch)
        with pytest.raises(
            secateur.UserError, match=f"failed its last check: {how}, .* Nothing was put in the output directory"
        ):
            pruned(model, allocation="uniform")
        assert not (model.parent / "out").exists()


def test_a_continuation_that_only_the_cache_gets_wrong_is_not_published(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, load = checkpoint("llama"), reload_apart.load

    def forgetful(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        forward = loaded.forward
        loaded.forward = lambda ids, past_key_values=None, **rest: forward(ids, **rest)
        return loaded

    monkeypatch.setattr(reload_apart, "load", forgetful)
    with pytest.raises(secateur.UserError, match="token . of a greedy continuation is another one"):
        pruned(model)
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_model_too_large_to_be_loaded_whole_is_read_layer_by_layer(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, wide: bool, allocation: str
) -> None:
    no_room(monkeypatch)
    if not wide:
        monkeypatch.setattr(verify, "FULL_PRECISION_LAYER", 0)
    found = pruned(checkpoint("llama", dtype=dtype), allocation=allocation).reloaded
    assert found["how"] == STREAMED and found["greedy"] == 0 and found["tokens"] == 16
    assert found["error"] < (1e-5 if wide else 5e-2)


@pytest.mark.parametrize(("format", "wide"), [("stock", True), ("unequal", True), ("unequal", False)])
def test_where_memory_is_free_another_process_loads_it_as_others_will(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, format: str, wide: bool
) -> None:
    no_room(monkeypatch, elsewhere=1 << 40)
    if not wide:
        monkeypatch.setattr(verify, "FULL_PRECISION_LAYER", 0)
        monkeypatch.setattr(reload, "FULL_PRECISION_LAYER", 0)
    model = checkpoint("llama", dtype=torch.bfloat16)
    found = pruned(model, format=format, allocation="uniform").reloaded
    assert found["how"] == APART and found["tokens"] == 32
    assert (found["greedy"], found["error"] < (1e-5 if wide else 5e-2)) == (16 if wide else 0, True)


def test_the_modelling_file_that_others_run_is_run(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, save = checkpoint("llama"), steps.save_config

    def broken(config: Any, directory: Path) -> None:
        save(config, directory)
        with (directory / "modeling_secateur.py").open("a") as file:
            file.write("\nraise RuntimeError('of the directory')\n")

    monkeypatch.setattr(steps, "save_config", broken)
    with pytest.raises(secateur.UserError, match="modeling_secateur.py is not what was written"):
        pruned(model, format="unequal")
    monkeypatch.setattr(reload, "_check_code", lambda _: None)
    no_room(monkeypatch, elsewhere=1 << 40)
    with pytest.raises(
        secateur.UserError, match=r"trust_remote_code=True\) ended with code 1: RuntimeError: of the directory\."
    ):
        pruned(model, format="unequal")
    assert not (model.parent / "out").exists()


def test_a_process_that_is_killed_says_nothing_of_the_result(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    no_room(monkeypatch, elsewhere=1 << 40)
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    really = reload_apart.subprocess.run
    monkeypatch.setattr(reload_apart.subprocess, "run", lambda words, **more: really([words[0], "-c", killed], **more))
    assert pruned(checkpoint("llama")).reloaded["how"] == STREAMED


def test_a_limit_is_kept(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("llama")
    assert pruned(model, max_memory="8GiB").reloaded["how"] == HERE
    monkeypatch.setattr(reload, "resident", lambda: 8 << 30)
    monkeypatch.setattr(reload, "free", lambda: 1 << 40)
    found = pruned(model, max_memory="8GiB", force=True).reloaded
    assert found == {"how": SKIPPED, "tokens": 0, "error": 0.0, "greedy": 0}
    monkeypatch.setattr(reload, "resident", lambda: (8 << 30) - 40_000)  # the head is 12 KB, the model more
    assert pruned(model, max_memory="8GiB", force=True).reloaded["how"] == STREAMED


def test_the_next_tokens_may_differ_where_two_are_as_likely() -> None:
    exact = torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [3.0, 2.0, 1.0]])
    reload._check_greedy(torch.tensor([0, 0]), exact, HERE)
    reload._check_greedy(torch.tensor([1, 0]), exact, HERE)
    with pytest.raises(secateur.UserError, match="token 2 of a greedy continuation is another one"):
        reload._check_greedy(torch.tensor([0, 1]), exact, HERE)
