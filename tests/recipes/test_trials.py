"""Losses of models that are pruned on trial, against models that hold the same weights; and the allocations that use them."""

import json
from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import UserError
from secateur.recipes.job import prepare
from secateur.recipes.steps import gather, scores_of
from secateur.recipes.trials import BlockTrials, trials_of
from secateur.reporter import Quiet
from secateur.runs import RunDirectory
from secateur.settings import PruneSettings
from secateur.streaming.forks import Forks
from secateur.streaming.loss import token_losses
from tests.contract.masking import layers_of
from tests.recipes.tiny_checkpoint import TINY, text_beside, tiny_checkpoint

FAMILIES = ("llama", "gpt2", "opt", "phi3", "gemma2")
UNBIASED = ("phi3", "gemma2")  # their readers cannot have a bias


def opened(base: Path, model_type: str = "llama", *, limit: int | None = None, **options) -> BlockTrials:
    """Trials of a job whose statistics have been gathered."""
    model = base / "model"
    if not model.is_dir():
        tiny_checkpoint(model_type, base, num_hidden_layers=3) if model_type == "llama" else tiny_checkpoint(model_type, base)
    given = {
        "ratio": 0.3,
        "method": "flap",
        "allocation": "measured",
        "calibration": str(text_beside(model)),
        **TINY,
        **options,
    }
    job = prepare(PruneSettings(model=str(model), out=base / "out", **given))
    run = RunDirectory.make(job.runs, model=job.source.fingerprint)
    store = gather(job, run, Quiet())
    found = trials_of(job, scores_of(job, store, None, Quiet()), store, run, Quiet())
    return BlockTrials(
        walk=found.walk, ids=found.ids, trial=found.trial, comparable=False, report=Quiet(), run=run, limit=limit
    )  # fmt: skip


def oracle(base: Path, trials: BlockTrials, kept, ids) -> float:
    """Mean loss of the model itself with its readers' weights overwritten."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        for (layer, axis), count in kept.items():
            for name, value in trials.trial.readers(layer, axis, count).items():
                module = layers_of(model)[layer].get_submodule(name.rpartition(".")[0])
                if name.endswith(".bias") and module.bias is None:
                    module.bias = torch.nn.Parameter(torch.zeros_like(value))
                layers_of(model)[layer].get_parameter(name).copy_(value)
        return float(token_losses(model(ids).logits[:, :-1], ids[:, 1:]).mean())


@pytest.mark.parametrize(
    ("model_type", "compensate"),
    [(m, c) for m in FAMILIES for c in ("least-squares", "bias", "none") if c != "bias" or m not in UNBIASED],
)
def test_rises_are_those_of_the_model_with_these_weights(model_type: str, compensate: str, tmp_path: Path):
    trials = opened(tmp_path, model_type, compensate=compensate)
    wanted = [(layer, axis, n) for layer in (0, 1) for axis, ns in (("kv", (2,)), ("ffn", (20, 5))) for n in ns]
    found = trials.rises(wanted, 3)
    ids = trials.ids[:3]
    dense = oracle(tmp_path, trials, {}, ids)
    for layer, axis, count in wanted:
        assert found[layer, axis, count] == pytest.approx(
            oracle(tmp_path, trials, {(layer, axis): count}, ids) - dense, abs=2e-5
        )
    assert len({round(rise, 4) for rise in found.values()}) > 3


def test_rises_in_a_pruned_model_count_from_it(tmp_path: Path):
    trials = opened(tmp_path)
    base = {(0, "ffn"): 20, (0, "kv"): 4, (1, "ffn"): 36, (2, "kv"): 2}
    wanted = [(0, "ffn", 36), (0, "ffn", 10), (0, "kv", 3), (2, "kv", 4), (1, "ffn", 12)]
    found = trials.rises(wanted, 4, base)
    start = oracle(tmp_path, trials, base, trials.ids)
    for layer, axis, count in wanted:
        expected = oracle(tmp_path, trials, {**base, (layer, axis): count}, trials.ids) - start
        assert found[layer, axis, count] == pytest.approx(expected, abs=2e-5)
    assert abs(found[0, "ffn", 36]) > 1e-3


def test_hidden_states_in_files_change_nothing_and_leave_nothing(tmp_path: Path):
    wanted = [(0, "ffn", 20), (1, "kv", 2), (1, "ffn", 9)]
    roomy, tight = opened(tmp_path), opened(tmp_path, limit=1)
    expected = roomy.rises(wanted, 4)
    assert tight.run is not None
    tight.run.write("results.json", {})
    assert tight.rises(wanted, 4) == expected
    assert not (tight.run.path / "forks").exists()


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = [(0, "ffn", 20), (1, "kv", 2)]
    expected = opened(tmp_path).rises(wanted, 4)
    ran = []
    layers = Forks.layers
    monkeypatch.setattr(Forks, "layers", lambda self: ran.append(dict(self.at)) or layers(self))
    assert opened(tmp_path).rises(wanted, 4) == expected
    assert ran == []
    opened(tmp_path).rises([*wanted, (1, "ffn", 9)], 4)
    assert ran == [{1: [(1, "ffn", 9)]}]
    opened(tmp_path).rises(wanted, 3)
    opened(tmp_path, compensate="none").rises(wanted, 4)
    opened(tmp_path).rises(wanted, 4, {(0, "ffn"): 30})
    assert len(ran) == 4


@pytest.mark.parametrize("limit", [None, 0])
def test_losses_one_after_another_are_those_of_each_model(limit: int | None, tmp_path: Path):
    trials = opened(tmp_path, limit=limit)
    whole = {(i, axis): n for i in range(3) for axis, n in (("kv", 4), ("ffn", 36))}
    first = {**whole, (0, "ffn"): 20, (2, "kv"): 2}
    for kept, settle in [
        (first, True), ({**first, (2, "ffn"): 12}, False), ({**first, (1, "kv"): 1}, False), ({**first, (1, "kv"): 1}, True),
        ({**first, (1, "kv"): 1, (2, "kv"): 4}, False), (whole, False), (first, False),
    ]:  # fmt: skip
        assert trials.loss(kept, settle=settle) == pytest.approx(oracle(tmp_path, trials, kept, trials.ids[::2]), abs=2e-5)
    assert trials.held_out(first) == pytest.approx(oracle(tmp_path, trials, first, trials.ids[1::2]), abs=2e-5)


@pytest.mark.parametrize("allocation", ["measured", "measured:points=2,rounds=1", "search:trials=8"])
@pytest.mark.parametrize("axes", ["kv,ffn", "group,ffn"])
def test_a_whole_job(allocation: str, axes: str, checkpoint, tmp_path: Path):
    model = checkpoint("llama", num_hidden_layers=3)

    def pruned(out: str, **options):
        return secateur.prune(
            model, out=tmp_path / out, ratio=0.3, method="flap", allocation=allocation, axes=axes,
            calibration=str(text_beside(model)), **TINY, **options,
        )  # fmt: skip

    first, again = pruned("a"), pruned("b", run_dir=tmp_path / "elsewhere")
    assert first.ratio_reached == pytest.approx(0.3, abs=0.02)
    assert first.verified <= 1e-5
    plans = [json.loads((Path(r.out) / "secateur.json").read_text())["plan"] for r in (first, again)]
    assert plans[0] == plans[1]
    assert len({len(kept.get("ffn", range(36))) for kept in plans[0]["layers"]}) > 1


def test_the_forecast_counts_the_trials(checkpoint, tmp_path: Path):
    model = checkpoint("llama")

    def foretold(allocation: str):
        return secateur.prune(
            model, ratio=0.3, method="flap", allocation=allocation, calibration=str(text_beside(model)), dry_run=True, **TINY
        )  # fmt: skip

    assert foretold("measured").walks == foretold("global").walks + 2
    assert foretold("measured:rounds=3").walks == foretold("global").walks + 3
    assert foretold("search:seconds=500").seconds > 500
    assert foretold("search:trials=4").seconds < 500


def test_what_is_refused(checkpoint, tmp_path: Path):
    model = checkpoint("llama")
    for allocation, told in [
        ("measured:points=0", "measured's points is 0"), ("search:seeds=3", "has no option 'seeds'"), ("searched", "Did you mean"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=told):
            secateur.prune(model, out=tmp_path / "out", ratio=0.3, allocation=allocation, **TINY)
    with pytest.raises(UserError, match="--format stock cannot be had"):
        secateur.prune(model, out=tmp_path / "out", ratio=0.3, allocation="measured", format="stock", **TINY)
