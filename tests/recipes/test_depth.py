"""Whole layers leave by ShortGPT: the job from the command line, its forecast, and what it says of what it reached."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.plan import Plan, read_record
from tests.contract.masking import layers_of
from tests.contract.test_depth import DEEP, DEPTH, MODEL_TYPES, without
from tests.contract.tiny import tiny_tokens
from tests.recipes.refusal import command, job, statistics
from tests.recipes.tiny_checkpoint import text_beside

Make = Callable[..., Path]


def plan_of(out: Path) -> Plan:
    record = read_record(out)
    assert record is not None
    return record["plan"]


def shortgpt(model: Path, **options: Any) -> Any:
    return secateur.prune(model, **job(model, **{"method": "shortgpt", "ratio": 0.4, **options}))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(tiny_tokens(2, 12)).logits


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_result_is_the_original_with_layers_skipped(checkpoint: Make, model_type: str) -> None:
    model = checkpoint(model_type, **DEEP[model_type])
    result = shortgpt(model)
    out = Path(result.out)
    dropped = plan_of(out).dropped
    assert len(dropped) == 2 and result.stock and result.verified < 1e-6
    assert (result.ratio, result.ratio_reached) == (pytest.approx(0.4, abs=1e-4), 0.5)
    small = AutoModelForCausalLM.from_pretrained(out).eval()
    assert sum(p.numel() for p in small.parameters()) == result.parameters_after < result.parameters_before
    dense = AutoModelForCausalLM.from_pretrained(model).eval()
    torch.testing.assert_close(logits(small), logits(without(dense, dropped)), rtol=1e-4, atol=1e-4)


def test_the_layers_of_least_influence_on_the_calibration_blocks_leave(checkpoint: Make) -> None:
    model = checkpoint("llama", **DEEP["llama"])
    result = shortgpt(model, samples=8)
    dense, turned = AutoModelForCausalLM.from_pretrained(model).eval(), []
    for layer in layers_of(dense):
        layer.register_forward_hook(
            lambda _, args, out: turned.append(1 - cosine_similarity(args[0], out, dim=-1).mean().item())
        )
    tokenizer = AutoTokenizer.from_pretrained(model)
    from secateur.calibration.blocks import draw_blocks
    from secateur.calibration.text import read_texts
    from secateur.calibration.tokens import tokenise

    text, _ = read_texts(str(text_beside(model)), None)
    with torch.no_grad():
        dense(draw_blocks(tokenise(text, tokenizer), samples=8, seq_len=16, seed=0).ids)
    order = sorted(range(DEPTH), key=turned.__getitem__)
    assert plan_of(Path(result.out)).dropped == tuple(sorted(order[:2]))
    assert len({round(x, 6) for x in turned}) == DEPTH


def test_the_command_line_tells_which_layers_left_and_the_card_how_to_repeat_it(checkpoint: Make) -> None:
    model = checkpoint("llama", **DEEP["llama"])
    asked = job(model, method="shortgpt", protect="-1", evaluation=str(text_beside(model)), allow_overlap=True, ratio=0.3)
    done = command("prune", str(model), json_wanted=True, **asked)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    plan = plan_of(asked["out"])
    assert len(plan.dropped) == 1 and DEPTH - 1 not in plan.dropped
    assert (found["allocation"], found["compensate"], found["ratio_reached"]) == (None, "none", 0.25)
    assert found["notes"] == [
        f"layer {plan.dropped[0]} of 4 left whole: 25.0% of the parameters of all blocks, the nearest to the 30.0% asked for"
    ]
    assert found["perplexity_before"] and found["perplexity_after"]
    card = (asked["out"] / "README.md").read_text()
    assert "whole layers were removed" in card and found["notes"][0] in card and "None" not in card
    words = shlex.split(next(line for line in card.splitlines() if line.startswith("    secateur prune ")))
    words = [
        {"model": str(model), "text.txt": str(text_beside(model)), "out": str(model.parent / "again")}.get(w, w) for w in words
    ]
    assert command(*words[1:]).exit_code == 0
    again = plan_of(model.parent / "again")
    assert (again.dropped, again.layers) == (plan.dropped, plan.layers)
    shown = json.loads(command("inspect", str(asked["out"] / "secateur.json"), json_wanted=True).stdout)
    left = [row["layer"] for row in shown["layers"] if row["kv"] == "0 of 4" and row["ffn"] == "0 of 36"]
    assert (left, shown["num_layers"]) == (list(plan.dropped), DEPTH)
    assert json.loads(command("inspect", str(asked["out"]), json_wanted=True).stdout)["num_layers"] == DEPTH - 1


def test_a_forecast_says_what_the_job_then_does(checkpoint: Make) -> None:
    model = checkpoint("gemma3_text", **DEEP["gemma3_text"])
    forecast = shortgpt(model, dry_run=True)
    result = shortgpt(model)
    for name in ("parameters_after", "bytes_after", "ratio_reached", "stock", "allocation", "compensate"):
        assert getattr(forecast, name) == getattr(result, name), name
    assert (forecast.widths, forecast.walks) == ("layers 2 of 4", 1)


@pytest.mark.parametrize("target", [{"target_params": "31K"}, {"target_size": "120KB"}])
def test_targets_are_met_as_nearly_as_whole_layers_can(checkpoint: Make, target: dict[str, str]) -> None:
    result = shortgpt(checkpoint("llama", **DEEP["llama"]), ratio=None, **target)
    assert (result.parameters_after, result.ratio_reached) == (30_576, 0.5)


@pytest.mark.parametrize("protect", ["0-1", "1,3", "-2--1"])
def test_protected_layers_stay(checkpoint: Make, protect: str) -> None:
    from secateur.settings import parse_layers

    result = shortgpt(checkpoint("llama", **DEEP["llama"]), protect=protect, ratio=0.5, format="stock")
    assert result.stock and set(plan_of(Path(result.out)).dropped) == set(range(DEPTH)) - parse_layers(protect, DEPTH)


def test_another_ratio_or_method_does_not_walk_again(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("llama", **DEEP["llama"])
    shortgpt(model)
    secateur.prune(model, **job(model, force=True))
    assert len(statistics(model.parent)) == DEPTH
    monkeypatch.setattr("secateur.recipes.steps.collect", lambda *a, **k: pytest.fail("walked again"))
    second = shortgpt(model, ratio=0.75, force=True)
    assert len(plan_of(Path(second.out)).dropped) == 3
    secateur.prune(model, **job(model, force=True))


def test_a_result_can_be_pruned_on(checkpoint: Make) -> None:
    """A stock result is a model as any other."""
    model = checkpoint("gpt_neo", **DEEP["gpt_neo"])
    first = shortgpt(model)
    second = secateur.prune(first.out, **job(model, out=model.parent / "second", ratio=0.2))
    assert second.parameters_after < first.parameters_after
    assert secateur.load(second.out).config.num_layers == 2
