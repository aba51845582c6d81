"""The faithful mode against every mode that the official Probe Pruning code was run in (see the README beside its numbers)."""

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import secateur
from secateur import Probe, ProbePruning
from secateur.runtime.history import History
from secateur.runtime.model import Probed
from tests.golden.test_probe_pruning import GOLDEN, MODELS, close, tensors

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"the golden data is not beside the repository ({GOLDEN.name} missing)"
)

SMALL = {"att": "attention", "mlp": "mlp"}


def paper(**changes) -> ProbePruning:
    return replace(ProbePruning.paper(keep_first=0, round_to=1), **changes)


FIXED = {"probe": None, "ema": None}
EARLIER = Probe(least=2, most=1.0, first=10, stream="earlier")
MODES = {
    "sync": paper(),
    "static_ppsp": paper(**FIXED),
    "full_batch": paper(probe=Probe(tokens=1.0, samples=1.0, most=1.0), history="none", ema=None),
    "wanda_sp": paper(**FIXED, metric="wanda-sp"),
    "flap": paper(**FIXED, metric="flap"),
    "flap_bias": paper(**FIXED, metric="flap", compensate="mean"),
    "sync_no_history": paper(history="none", ema=None),
    "sync_small_probe": paper(probe=Probe(tokens=0.1, samples=0.25, least=2, most=1.0, first=10)),
    "sync_short": paper(),
    "sync_skip0_multiple8": paper(keep_first=1, round_to=8),
    "parallel_skip0": paper(probe=EARLIER, keep_first=1),
}
CASES = [(mode, ratio) for mode, ratio in itertools.product(MODES, ("0.2", "0.4"))]
CASES.remove(("sync_small_probe", "0.2"))
CASES.remove(("sync_short", "0.2"))


def network(model: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(GOLDEN / model, attn_implementation="sdpa").eval()


@cache
def expected(model: str, mode: str, ratio: str) -> dict[str, torch.Tensor]:
    whole = load_file(GOLDEN / model / f"expected_{mode}.safetensors")
    return {n.removeprefix(f"r{ratio}."): t for n, t in whole.items() if n.startswith(f"r{ratio}.")}


def calibrated(model: str, how: ProbePruning, ratio: str) -> Probed:
    probed = secateur.probe(network(model), float(ratio), how=how)
    if how.history == "none":
        return probed
    probed.calibrate(list(tensors(model, "inputs")["calib_tokens"]))
    golden = tensors(model, "expected_calibration")
    for (layer, half), history in probed.state.histories.items():
        name = "att" if half == "attention" else "mlp"
        close(history.square, golden[f"history_{name}"][layer])
        if (
            how.metric == "flap"
        ):  # the released code's fluctuation and mean, which are no good estimates, are given and not made
            probed.state.histories[layer, half] = History(
                square=history.square, count=history.count, mean=golden[f"baseline_{name}"][layer],
                extra={"fluctuation": golden[f"fluctuation_{name}"][layer]},
            )  # fmt: skip
    return probed


@MODELS
@pytest.mark.parametrize(("mode", "ratio"), CASES)
def test_every_index_loss_and_history(model, mode, ratio):
    golden, how = expected(model, mode, ratio), MODES[mode]
    probed = calibrated(model, how, ratio)
    with safe_open(GOLDEN / model / f"expected_{mode}.safetensors", "pt") as file:
        layers = [int(i) for i in file.metadata()["layers"].strip("[]").split(",")]
    for number, ids in enumerate(tensors(model, "inputs")["eval_tokens"]):
        ids = ids[:5, :32] if mode == "sync_short" else ids
        with torch.no_grad(), probed.recorded() as seen:
            logits = probed(ids, use_cache=False).logits
        chosen = {(c.layer, c.half): c for c in seen}
        assert set(chosen) == set(itertools.product(layers, SMALL.values()))
        for row, layer in enumerate(layers):
            for name, kept in (("att", "heads"), ("mlp", "ffn")):
                at = (row,) if how.probe is None else (number, row)
                found = chosen[layer, SMALL[name]]
                where = f"batch {number}, layer {layer}, {name}"
                if found.part is not None and f"{name}_tokens" in golden:
                    assert found.part.tokens.tolist() == golden[f"{name}_tokens"][at].tolist(), where
                    assert found.part.samples.tolist() == golden[f"{name}_samples"][at].tolist(), where
                score = {"att": "head", "mlp": "ffn"}[name]
                close(found.scores, golden[f"{score}_scores"][at])
                assert found.kept.tolist() == golden[f"{kept}_kept"][at].tolist(), where
        nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        torch.testing.assert_close(nll.view(ids.shape[0], -1), golden["token_nll"][number], rtol=0, atol=1e-4)
        assert abs(float(nll.mean()) - float(golden["loss"][number])) <= 1e-5
        torch.testing.assert_close(logits[0], golden["logits_first_sample"][number], rtol=0, atol=1e-4)
    for name, half in SMALL.items():
        if f"history_{name}_final" in golden:
            found = torch.stack([probed.state.histories[layer, half].square for layer in layers])
            close(found, golden[f"history_{name}_final"])


@MODELS
def test_dense_again_is_the_model_as_it_was(model):
    probed = calibrated(model, MODES["sync"], "0.4")
    ids = tensors(model, "inputs")["eval_tokens"]
    with torch.no_grad():
        probed(ids[0])
        losses = [float(probed.dense()(batch, labels=batch).loss) for batch in ids]
    golden = load_file(GOLDEN / model / "expected_dense.safetensors")["loss"]
    torch.testing.assert_close(torch.tensor(losses), golden, rtol=0, atol=1e-5)
