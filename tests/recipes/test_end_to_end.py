"""The main job on a model of every family, through the public API: what comes out loads, computes and generates as it should."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.plan import Plan, parameters, unit_cost
from secateur.streaming.checkpoint import Checkpoint
from tests.contract.masking import masked
from tests.contract.tiny import MODEL_TYPES, tiny_tokens
from tests.recipes.tiny_checkpoint import text_beside, tiny_checkpoint

# Families whose own configuration can hold pruned heads and channels, and those that can hold channels alone.
BOTH = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3")
CHANNELS = ("gpt2", "gpt_neo", "gpt_neox", "opt")
QUICK = {"method": "flap", "samples": 8, "seq_len": 16, "evaluation": "none"}


def pruned(model_type: str, base: Path, **options):
    model = tiny_checkpoint(model_type, base)
    text = text_beside(model)
    options = {"ratio": 0.3, "calibration": str(text), **QUICK, **options}
    return model, secateur.prune(model, out=base / "out", **options)


def largest_unit(model: Path) -> float:
    """Half of the parameters of the largest unit, over those of the whole stack."""
    binding = Checkpoint.open(model).binding
    specs = tuple(binding.layer.values())
    cost = max(unit_cost(specs, binding.sizes, axis) for axis in ("kv", "ffn"))
    return cost / 2 / parameters(specs, binding.sizes) / binding.num_layers + 1e-9


def plan_of(out: Path) -> Plan:
    return Plan.from_json(json.dumps(json.loads((out / "secateur.json").read_text())["plan"]))


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def greedy(model: torch.nn.Module, ids: torch.Tensor, **options) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **options)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_result_computes_as_the_original_with_dropped_units_masked(model_type: str, allocation: str, tmp_path: Path):
    model, result = pruned(model_type, tmp_path, allocation=allocation, compensate="none")
    out = Path(result.out)
    dense = AutoModelForCausalLM.from_pretrained(model).eval()
    small = secateur.load(out)
    ids = tiny_tokens(2, 12)
    plan = plan_of(out)
    assert sum(p.numel() for p in small.parameters()) == result.parameters_after < result.parameters_before
    torch.testing.assert_close(logits(small, ids), logits(masked(dense, plan.layers), ids), rtol=1e-4, atol=1e-4)
    assert abs(result.ratio_reached - 0.3) <= largest_unit(model)
    cached, uncached = greedy(small, ids), greedy(small, ids, use_cache=False)
    assert torch.equal(cached, uncached)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    alone = small(ids).logits[:, -1]
    with torch.no_grad():
        positions = {} if model_type == "bloom" else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
        beside = small(padded, attention_mask=mask, **positions).logits[:, -1]
    torch.testing.assert_close(beside, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model_type", BOTH + CHANNELS)
def test_a_stock_result_loads_with_plain_transformers(model_type: str, tmp_path: Path):
    _, result = pruned(
        model_type, tmp_path, format="stock", **({"axes": "ffn", "ratio": 0.2} if model_type in CHANNELS else {})
    )
    assert result.stock
    plain, info = AutoModelForCausalLM.from_pretrained(result.out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = tiny_tokens(2, 12)
    torch.testing.assert_close(logits(plain.eval(), ids), logits(secateur.load(result.out), ids))
    assert greedy(plain, ids).shape == (2, 18)
    tokenizer = AutoTokenizer.from_pretrained(result.out)
    assert tokenizer("a b").input_ids


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_result_that_transformers_cannot_hold_is_refused_by_it(model_type: str, tmp_path: Path):
    _, result = pruned(model_type, tmp_path, protect="0")
    assert not result.stock and result.load == f"AutoModelForCausalLM.from_pretrained({result.out!r}, trust_remote_code=True)"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(result.out)


def test_a_bias_that_the_family_has_no_slot_for_is_written_beside_its_class(tmp_path: Path):
    model, result = pruned("mistral", tmp_path, compensate="bias", axes="ffn", ratio=0.2)
    assert not result.stock and "no bias slot on mlp.down_proj" in " ".join(result.notes)
    small, ids = secateur.load(result.out), tiny_tokens(2, 12)
    dense, plan = AutoModelForCausalLM.from_pretrained(model).eval(), plan_of(Path(result.out))
    assert all(layer.mlp.down_proj.bias.abs().sum() > 0 for layer in small.model.layers)
    assert sum(p.numel() for p in small.parameters()) == result.parameters_after
    error = torch.linalg.vector_norm(logits(small, ids) - logits(dense, ids))
    assert error < torch.linalg.vector_norm(logits(masked(dense, plan.layers), ids) - logits(dense, ids))
    rows = torch.tensor(AutoTokenizer.from_pretrained(result.out)(text_beside(model).read_text())["input_ids"])
    rows = rows[: len(rows) // 16 * 16].view(-1, 16)
    with torch.no_grad():
        loss = torch.stack([small(row[None], labels=row[None]).loss for row in rows]).mean().item()
    assert secateur.evaluate(result.out, text=str(text_beside(model)), seq_len=16).loss == pytest.approx(loss, rel=1e-4)
    card = (Path(result.out) / "README.md").read_text()
    assert "trust_remote_code=True" in card and "secateur.register()" in card and 'library_name: "transformers"' in card


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi", "bloom"])
def test_compensation_brings_the_output_nearer(model_type: str, tmp_path: Path):
    """On the calibration text itself: the reader of the first layer says more of what it said with compensation than without."""
    model, _ = pruned(model_type, tmp_path, compensate="none", samples=64)
    text = text_beside(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"])[: 64 * 16].view(64, 16)
    dense = AutoModelForCausalLM.from_pretrained(model).eval()
    errors = {}
    for how in ("none", "least-squares"):
        options = {**QUICK, "samples": 64}
        result = secateur.prune(model, out=tmp_path / how, ratio=0.3, compensate=how, calibration=str(text), **options)
        small = secateur.load(result.out)
        with torch.no_grad():
            gap = (
                small(ids, output_hidden_states=True).hidden_states[1] - dense(ids, output_hidden_states=True).hidden_states[1]
            )
        errors[how] = gap.norm().item()
    assert errors["least-squares"] < 0.9 * errors["none"]


@pytest.mark.parametrize("axes", ["group", "group,ffn"])
def test_query_heads_leave_from_within_their_groups(axes: str, tmp_path: Path):
    model, result = pruned("llama", tmp_path, axes=axes, compensate="none", ratio=0.18 if axes == "group" else 0.4)
    plan = plan_of(Path(result.out))
    rows = plan.layers[0]["group"]
    assert len(rows) == 4 and {len(row) for row in rows} == {1}
    small, dense = secateur.load(result.out), AutoModelForCausalLM.from_pretrained(model).eval()
    ids = tiny_tokens(2, 12)
    torch.testing.assert_close(logits(small, ids), logits(masked(dense, plan.layers), ids), rtol=1e-4, atol=1e-4)
    assert result.stock and small.config.num_attention_heads == 4


def test_the_directory_is_what_people_expect(tmp_path: Path):
    model, result = pruned("llama", tmp_path, evaluation=None)
    out = Path(result.out)
    present = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "README.md",
        "secateur.json",
        "model.safetensors",
    } <= present
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    card = (out / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and "secateur prune" in card and f"{result.parameters_after:,}" in card
    published = "".join(path.read_text() for path in (out / "README.md", out / "secateur.json", out / "config.json"))
    assert str(tmp_path) not in published, "a person's directories are nobody else's business"
    assert result.perplexity_before and result.perplexity_after
    again = secateur.evaluate(out, text=str(text_beside(model)), seq_len=16)
    with torch.no_grad():
        small = secateur.load(out)
        tokenizer = AutoTokenizer.from_pretrained(out)
        ids = torch.tensor(tokenizer(text_beside(model).read_text())["input_ids"])
        ids = ids[: len(ids) // 16 * 16].view(-1, 16)
        loss = torch.stack([small(row[None], labels=row[None]).loss for row in ids]).mean().item()
    assert again.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom"])
def test_a_model_in_memory_is_evaluated_as_the_one_on_disk(model_type: str, tmp_path: Path):
    directory = tiny_checkpoint(model_type, tmp_path)
    options = {"text": str(text_beside(directory)), "seq_len": 16, "max_tokens": 800}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = secateur.evaluate(model, tokenizer=tokenizer, **options)
    assert found.loss == pytest.approx(secateur.evaluate(directory, **options).loss, rel=1e-6)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with pytest.raises(secateur.UserError, match="tokenizer"):
        secateur.evaluate(model, **options)
    unequal = secateur.prune(directory, out=tmp_path / "out", ratio=0.3, protect="0", calibration=options["text"], **QUICK)
    with pytest.raises(secateur.UserError, match="unequal"):
        secateur.evaluate(secateur.load(unequal.out), tokenizer=tokenizer, **options)


def test_a_text_of_a_long_name_is_no_obstacle(tmp_path: Path):
    model = tiny_checkpoint("llama", tmp_path)
    text = tmp_path / f"{'long' * 50}.txt"
    text.write_text(text_beside(model).read_text())
    result = secateur.prune(model, out=tmp_path / "out", ratio=0.3, calibration=str(text), samples=8, seq_len=16)
    assert result.evaluation is not None and len(result.evaluation) > 255
    assert text.name in (tmp_path / "out" / "README.md").read_text()


def test_pruning_again_with_another_ratio_needs_no_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, first = pruned("llama", tmp_path)
    monkeypatch.setattr("secateur.recipes.steps.collect", lambda *a, **k: pytest.fail("walked again"))
    second = secateur.prune(model, out=tmp_path / "second", ratio=0.4, calibration=str(text_beside(model)), **QUICK)
    assert second.run_dir == first.run_dir and second.parameters_after < first.parameters_after


def test_the_same_job_gives_the_same_plan_and_the_same_bytes(tmp_path: Path):
    model, first = pruned("qwen2", tmp_path)
    options = {"ratio": 0.3, "calibration": str(text_beside(model)), **QUICK}
    second = secateur.prune(model, out=tmp_path / "again", run_dir=tmp_path / "elsewhere", **options)
    for name in ("model.safetensors", "config.json"):
        assert (Path(first.out) / name).read_bytes() == (Path(second.out) / name).read_bytes()
    assert plan_of(Path(first.out)) == plan_of(Path(second.out))


@pytest.mark.parametrize(("target", "within"), [({"target_params": "30000"}, 30_000), ({"target_size": "0.12MB"}, 120_000)])
def test_targets_are_met_within_a_unit(target: dict[str, str], within: int, tmp_path: Path):
    _, result = pruned("llama", tmp_path, ratio=None, **target)
    reached = result.parameters_after if "target_params" in target else result.bytes_after
    per = 1 if "target_params" in target else 4
    assert abs(reached - within) <= per * 2 * 3 * 48  # one MLP channel of each of two layers


def test_a_forecast_says_what_the_job_then_does(tmp_path: Path):
    model = tiny_checkpoint("llama", tmp_path)
    options = {"ratio": 0.3, "calibration": str(text_beside(model)), **QUICK}
    forecast = secateur.prune(model, dry_run=True, **options)
    assert not list(tmp_path.glob(".secateur*")), "a dry run writes nothing"
    result = secateur.prune(model, out=tmp_path / "out", **options)
    assert (forecast.parameters_after, forecast.bytes_after) == (result.parameters_after, result.bytes_after)
    assert forecast.stock == result.stock and forecast.walks == 1
    assert forecast.ratio_reached == pytest.approx(result.ratio_reached)


def test_widths_are_multiples_when_asked(tmp_path: Path):
    _, result = pruned("llama", tmp_path, round_to=8, axes="ffn", ratio=0.2)
    assert all(len(kept["ffn"]) % 8 == 0 for kept in plan_of(Path(result.out)).layers)


def test_a_hidden_state_file_is_used_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, plain = pruned("llama", tmp_path / "plain")
    monkeypatch.setattr("secateur.streaming.memory.free", lambda: 0)
    _, spilled = pruned("llama", tmp_path / "spilled")
    assert plan_of(Path(plain.out)).layers == plan_of(Path(spilled.out)).layers


def test_a_ratio_removes_the_same_units_whatever_compensates_them(tmp_path: Path):
    """New biases are no reason to remove more: a ratio counts what leaves, and a target counts what is there afterwards."""
    model, result = pruned("llama", tmp_path, compensate="none")
    bare = plan_of(Path(result.out))
    text = str(text_beside(model))
    biased = secateur.prune(model, out=tmp_path / "biased", compensate="bias", ratio=0.3, calibration=text, **QUICK)
    assert plan_of(Path(biased.out)).layers == bare.layers
    assert biased.ratio_reached == result.ratio_reached
    assert biased.parameters_after > result.parameters_after
    target = result.parameters_after
    met = secateur.prune(model, out=tmp_path / "met", compensate="bias", target_params=str(target), calibration=text, **QUICK)
    assert abs(met.parameters_after - target) <= largest_unit(model) * met.parameters_before
    assert met.ratio_reached > result.ratio_reached
