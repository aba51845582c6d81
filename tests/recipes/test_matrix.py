"""Every family x equal and unequal layers x compensations x what leaves: pruned, loaded elsewhere as stated, and compared.

The oracle is the original at full size: dropped units masked, and the readers' new weights, which the compensation solved for and
other tests compare with naive solutions, put back in their places.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import secateur
from secateur import UserError, axes
from secateur.families import family_for
from secateur.plan import read_record
from secateur.streaming.checkpoint import Checkpoint
from tests.contract.elsewhere import Written, answers, computes_as
from tests.contract.masking import layers_of, masked, sizes_of
from tests.contract.test_depth import DEEP, without
from tests.contract.tiny import MODEL_TYPES, longer, tiny_tokens
from tests.recipes.tiny_checkpoint import TINY, text_beside, tiny_checkpoint

SHAPES: dict[str, dict[str, Any]] = {"equal": {"allocation": "uniform"}, "unequal": {"allocation": "uniform", "protect": "1"}}
LEAVES = ("kv", "ffn", "kv,ffn")
SMOKE = {
    "llama": ("unequal", "least-squares", "kv,ffn"),
    "gpt2": ("equal", "bias", "kv"),
    "gemma3_text": ("equal", "none", "ffn"),
}
Case = tuple[str, str, str]
"""Shape of the layers, compensation, what leaves."""


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        for compensate in ("none", "bias", "least-squares"):
            for axis in LEAVES:
                yield shape, compensate, axis
        yield shape, "none", "layers"


def settings(case: Case) -> dict[str, Any]:
    shape, compensate, leaves = case
    if leaves == "layers":
        return {"method": "shortgpt", "ratio": 0.4, "format": "unequal" if shape == "unequal" else "auto"}
    return {
        "method": "wanda-sp",
        "ratio": 0.25 if leaves == "kv,ffn" else 0.15,
        "compensate": compensate,
        "axes": leaves,
        **SHAPES[shape],
    }


@torch.no_grad()
def oracle(dense: nn.Module, out: Path) -> nn.Module:
    """The original at full size, with what `out` has of its readers' weights and biases."""
    record = read_record(out)
    assert record is not None
    plan, source = record["plan"], Checkpoint.open(out)
    if plan.dropped:
        return without(dense, plan.dropped)
    family, sizes, result = family_for(dense.config), sizes_of(dense), masked(dense, plan.layers)
    for number, (layer, kept) in enumerate(zip(layers_of(result), plan.layers, strict=True)):
        present = [name for name, _ in layer.named_parameters()]
        readers = [n for n in present if any(axes.parse(family.layer[n]).reads(axis) for axis in kept)]
        for name in readers:
            path, _, last = name.rpartition(".")
            owner: Any = layer.get_submodule(path)
            weight = getattr(owner, last)
            places = torch.arange(weight.numel()).view(weight.shape)
            chosen = axes.select(places, axes.parse(family.layer[name]), sizes, kept)
            weight.view(-1)[chosen.reshape(-1)] = source.read(source.binding.layer_name(number, name)).reshape(-1)
            bias = source.binding.layer_name(number, f"{path}.bias")
            if bias in source.keys:
                owner.bias = nn.Parameter(source.read(bias))
    return result


def check(model_type: str, chosen: list[Case], tmp_path: Path) -> None:
    model = tiny_checkpoint(model_type, tmp_path, **{**DEEP[model_type], **longer(model_type)})
    dense: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    results = {}
    for number, case in enumerate(chosen):
        out, common = tmp_path / f"out{number}", {**TINY, "calibration": str(text_beside(model)), "run_dir": tmp_path / "runs"}
        results[case] = secateur.prune(model, out=out, **common, **settings(case))
        if case[0] == "unequal":
            assert not results[case].stock, case
        elif not results[case].stock:
            by_stock(model, tmp_path / f"stock{number}", {**common, **settings(case), "format": "stock"})
    written = [Written(out=Path(result.out), load=result.load) for result in results.values()]
    ids, prompt = tiny_tokens(2, 12), tiny_tokens(2, 6, seed=1)
    for case, one, found in zip(results, written, answers(written, ids, prompt, tmp_path), strict=True):
        assert computes_as(found, oracle(dense, one.out), ids, prompt), case


def by_stock(model: Path, out: Path, options: dict[str, Any]) -> None:
    """What stock cannot hold is refused where only stock will do, with a way out; or it holds some of the axes that were asked for."""
    refusal = ""
    try:
        result = secateur.prune(model, out=out, **options)
    except UserError as error:
        refusal = str(error)
    assert "drop --format stock" in refusal and not out.exists() if refusal else result.stock and options["axes"] == "kv,ffn"


@pytest.mark.parametrize("model_type", SMOKE)
def test_a_result_computes_elsewhere_as_the_original(model_type: str, tmp_path: Path) -> None:
    check(model_type, [SMOKE[model_type], ("unequal", "none", "layers")], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_result_computes_elsewhere_as_the_original(model_type: str, tmp_path: Path) -> None:
    check(model_type, list(cases()), tmp_path)


@pytest.mark.parametrize("compensate", ["bias", "least-squares"])
def test_whole_layers_leave_nothing_to_compensate(compensate: str, tmp_path: Path) -> None:
    model = tiny_checkpoint("llama", tmp_path, **DEEP["llama"])
    with pytest.raises(UserError, match="Leave it out, or choose a method that prunes heads and channels"):
        secateur.prune(model, out=tmp_path / "out", method="shortgpt", ratio=0.4, compensate=compensate, **TINY)
    assert not (tmp_path / "out").exists()
