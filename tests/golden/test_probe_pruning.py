"""Scores and statistics against numbers that the official Probe Pruning code produced (see the README beside them)."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from secateur import axes
from secateur.allocation.ladder import choose
from secateur.criteria.flap import Flap
from secateur.criteria.ppsp import PPsp
from secateur.criteria.unit import CoupledGroup
from secateur.criteria.wanda_sp import WandaSp
from secateur.families.llama import LLAMA
from secateur.statistics.moments import Moments, MomentsAccumulator
from secateur.surgery.compensate import BiasCompensation
from tests.reference.flap_official import fluctuation

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "probe_pruning"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"the golden data is not beside the repository ({GOLDEN.name} missing)"
)

LAYERS, HEADS, FFN = 6, 8, 172
READERS = {"att": "self_attn.o_proj", "mlp": "mlp.down_proj"}
MODELS = pytest.mark.parametrize("model", ["mha", "gqa"])
RATIOS = pytest.mark.parametrize("ratio", ["0.2", "0.4"])
# mode of the golden run -> (criterion, how its statistic c is a Moments)
MODES = {
    "wanda_sp": (WandaSp(), lambda c: Moments(1, torch.zeros_like(c), c)),  # sum of squares = c
    "static_ppsp": (PPsp(), lambda c: Moments(1, torch.zeros_like(c), c)),  # mean square = c
    "flap": (Flap(squared_heads=False), lambda c: Moments(2, torch.zeros_like(c), c)),  # variance = c; that run does not square
}


@cache
def tensors(model: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / model / f"{name}.safetensors")


@cache
def sizes(model: str) -> dict[str, int]:
    kv = 8 if model == "mha" else 4
    return {"hidden": 64, "kv": kv, "group": HEADS // kv, "head_dim": 8, "ffn": FFN, "vocab": 128}


def group(model: str, layer: int, block: str) -> CoupledGroup:
    """The MLP's channels, or the attention's query heads, which the golden runs remove one by one."""
    prefix = f"model.layers.{layer}."
    weights = {n.removeprefix(prefix): w for n, w in tensors(model, "model").items() if n.startswith(prefix)}
    specs = {n: axes.parse(text) for n, text in LLAMA.layer.items() if n in weights}
    axis = "ffn" if block == "mlp" else "group"
    return CoupledGroup.of(layer=layer, axis=axis, sizes=sizes(model), specs=specs, weights=weights)


def statistic(model: str, mode: str, block: str) -> torch.Tensor:
    """c [layer, channel]: the sum over positions of the golden history, or of FLAP's fluctuation."""
    table = "fluctuation" if mode == "flap" else "history"
    return tensors(model, "expected_calibration")[f"{table}_{block}"].double().sum(1)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the tensor's largest value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def scores(model: str, mode: str, block: str) -> torch.Tensor:
    criterion, moments = MODES[mode]
    rows = []
    for layer, c in enumerate(statistic(model, mode, block)):
        rows.append(criterion.score(group(model, layer, block), {READERS[block]: {Moments: moments(c)}}))
    return torch.stack(rows)


@MODELS
@RATIOS
@pytest.mark.parametrize("mode", MODES)
def test_scores_and_kept_sets(model, ratio, mode):
    expected = tensors(model, f"expected_{mode}")
    with safe_open(GOLDEN / model / f"expected_{mode}.safetensors", "pt") as file:
        effective = float(file.metadata()[f"r{ratio}.effective_ratio_per_layer"])
    for block, score, kept, size in (("mlp", "ffn_scores", "ffn_kept", FFN), ("att", "head_scores", "heads_kept", HEADS)):
        found = scores(model, mode, block)
        close(found, expected[f"r{ratio}.{score}"].double())
        count = size - math.floor(effective * size)
        best = [list(choose(row, "unit", {"unit": size}, count)) for row in found]
        assert best == expected[f"r{ratio}.{kept}"].tolist()


@cache
def inputs(model: str) -> dict[tuple[int, str], list[torch.Tensor]]:
    """(layer, block) -> the reader's input [sample, position, channel] for each calibration batch, by a plain forward pass."""
    network = LlamaForCausalLM.from_pretrained(GOLDEN / model, attn_implementation="eager").eval()
    seen: dict[tuple[int, str], list[torch.Tensor]] = {}
    for layer, module in enumerate(network.model.layers):
        for block, reader in READERS.items():
            batches = seen[layer, block] = []
            module.get_submodule(reader).register_forward_pre_hook(
                lambda _, args, batches=batches: batches.append(args[0].clone())
            )
    with torch.no_grad():
        for batch in tensors(model, "inputs")["calib_tokens"]:
            network(batch, use_cache=False)
    return seen


@MODELS
@pytest.mark.parametrize("block", READERS)
def test_own_second_moments_are_the_golden_histories(model, block):
    found = []
    for layer in range(LAYERS):
        batches = inputs(model)[layer, block]
        accumulator = MomentsAccumulator(batches[0].shape[-1])
        for x in batches:
            accumulator.update(x.flatten(0, 1))
        moments = accumulator.result()
        assert moments.count == 4 * 8 * 48
        found.append(moments.second_moment * 48)  # the golden one is summed over positions
    close(torch.stack(found), statistic(model, "wanda_sp", block))


@MODELS
@pytest.mark.parametrize("block", READERS)
def test_the_released_fluctuation_is_what_the_reference_says_and_not_what_the_package_does(model, block):
    golden = tensors(model, "expected_calibration")
    found = [fluctuation(inputs(model)[layer, block]) for layer in range(LAYERS)]
    close(torch.stack([f for f, _ in found]), golden[f"fluctuation_{block}"])
    close(torch.stack([m for _, m in found]), golden[f"baseline_{block}"])
    true_mean = torch.stack([torch.cat(inputs(model)[layer, block]).mean((0, 1)) for layer in range(LAYERS)])
    torch.testing.assert_close(golden[f"baseline_{block}"].mean(1) * 8, true_mean, rtol=1e-3, atol=1e-5)


@MODELS
@RATIOS
@pytest.mark.parametrize("block", READERS)
def test_bias_compensation_fed_the_golden_means_gives_the_golden_bias(model, ratio, block):
    golden = tensors(model, "expected_flap_bias")
    kept = golden[f"r{ratio}.{'ffn' if block == 'mlp' else 'heads'}_kept"]
    found = []
    for layer in range(LAYERS):
        g = group(model, layer, block)
        mean = tensors(model, "expected_calibration")[f"baseline_{block}"][layer].double().mean(0)
        keep = torch.isin(g.unit_of_column, kept[layer]).nonzero().flatten()
        moments = {Moments: Moments(2, mean, torch.zeros_like(mean))}
        found.append(BiasCompensation().compensate(g.reader.oriented, None, keep, moments)[1])
    close(torch.stack(found), golden[f"r{ratio}.{block}_bias"].double())
