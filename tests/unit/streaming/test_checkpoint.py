"""A checkpoint on disk: keys as `from_pretrained` maps them, what is checked on opening, and NaN wherever it stands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secateur.errors import UserError
from secateur.streaming import checkpoint as reading
from secateur.streaming import finite as finding
from secateur.streaming.checkpoint import Checkpoint, locate, shards
from secateur.streaming.finite import blame, check_outer, finite
from secateur.streaming.module import ModuleSource
from tests.contract.tiny import tiny_model

FILE = "model.safetensors"


def saved(directory: Path, model_type: str = "llama", shard: str = "50GB", **overrides: Any) -> Path:
    model: Any = tiny_model(model_type, torch.float32, **overrides)
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def change(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors, by name with `__` for the dots."""
    found = load_file(directory / FILE)
    for name, x in tensors.items():
        found.pop(name.replace("__", "."), None)
        if x is not None:
            found[name.replace("__", ".")] = x.contiguous()
    save_file(found, directory / FILE)


@pytest.mark.parametrize("shard", ["50GB", "10KB"])
def test_every_weight_is_read_as_it_was(tmp_path: Path, shard: str) -> None:
    model: Any = tiny_model("llama", torch.float32)
    source = Checkpoint.open(saved(tmp_path, shard=shard))
    assert (len(shards(tmp_path)) > 3) == (shard == "10KB")
    named = dict(model.named_parameters())
    assert source.keys.keys() == named.keys()
    rows = torch.tensor([0, 1, 7])
    for name, x in named.items():
        assert torch.equal(source.read(name), x) and torch.equal(source.read_rows(name, rows), x[rows])
        assert source.dtype(name) == torch.float32 and repr(name) in source.origin(name)
    assert source.num_parameters == sum(x.numel() for x in named.values())
    assert source.num_bytes == 4 * source.num_parameters and source.unused == ()


@pytest.mark.parametrize(
    ("model_type", "rename"),
    [("gpt2", lambda key: key.removeprefix("transformer.")), ("bloom", lambda key: key.removeprefix("transformer.")),
     ("opt", lambda key: key.removeprefix("model.")), ("gpt_neox", lambda key: key.replace("embed_out", "lm_head"))],
    ids=["gpt2", "bloom", "opt", "gpt_neox"],
)  # fmt: skip
def test_old_spellings_are_understood(tmp_path: Path, model_type: str, rename: Any) -> None:
    found = load_file(saved(tmp_path, model_type) / FILE)
    plain = Checkpoint.open(tmp_path)
    weights, fingerprint = {name: plain.read(name) for name in plain.keys}, plain.fingerprint
    renamed = {rename(key): x for key, x in found.items()}
    assert renamed.keys() != found.keys()
    save_file(renamed, tmp_path / FILE)
    old = Checkpoint.open(tmp_path)
    assert (old.unused, old.fingerprint, old.keys.keys()) == ((), fingerprint, weights.keys())
    assert all(torch.equal(old.read(name), x) for name, x in weights.items())


def test_what_the_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    change(saved(tmp_path), model__rotary__inv_freq=torch.ones(3), model__mask=torch.ones(2, dtype=torch.bool))
    assert Checkpoint.open(tmp_path).unused == ("model.mask", "model.rotary.inv_freq")


def test_a_tied_head_may_be_stored_all_the_same(tmp_path: Path) -> None:
    saved(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint.open(tmp_path).keys
    change(tmp_path, lm_head__weight=torch.zeros(64, 48))
    assert "lm_head.weight" in Checkpoint.open(tmp_path).keys


def test_the_fingerprint_is_of_configuration_and_weights(tmp_path: Path) -> None:
    prints = [Checkpoint.open(saved(tmp_path)).fingerprint, Checkpoint.open(tmp_path).fingerprint]
    change(tmp_path, model__norm__weight=torch.zeros(48))
    prints.append(Checkpoint.open(tmp_path).fingerprint)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(body | {"rms_norm_eps": 0.1}))
    prints.append(Checkpoint.open(tmp_path).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_the_fingerprint_does_not_depend_on_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SAMPLE", 16)  # so that every weight has a beginning and an end
    sources = [Checkpoint.open(saved(tmp_path / str(kib), shard=f"{kib}KB")) for kib in (10, 14, 30, 1000)]
    assert len({source.fingerprint for source in sources}) == 1


def test_the_type_that_most_bytes_have_is_the_models(tmp_path: Path) -> None:
    change(saved(tmp_path), model__norm__weight=torch.ones(48, dtype=torch.float64))
    source = Checkpoint.open(tmp_path)
    assert source.binding.model.dtype == torch.float32 and source.dtype("model.norm.weight") == torch.float64


@pytest.mark.parametrize(
    ("tensors", "says"),
    [({"model__norm__weight": None}, "'model.norm.weight' is in no file of"),
     ({"model__norm__weight": torch.ones(47)}, r"'model.norm.weight' in .* has the shape \[47\], .* says \[48\]"),
     ({"model__norm__weight": torch.ones(48, dtype=torch.int64)}, "is quantised: it has the weight 'model.norm.weight'"),
     ({"anything": torch.ones(2, dtype=torch.int8)}, "is quantised: it has weights of type torch.int8")],
    ids=["missing", "shape", "integers", "int8"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_on_opening(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    change(saved(tmp_path), **tensors)
    with pytest.raises(UserError, match=says):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("spec", ["./gone", "a b", "gone/with/three", "/gone", "-x", "..", ""])
def test_what_is_no_directory_and_no_hub_id(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if spec in ("..", ""):
        assert locate(spec) == Path(spec)  # directories
    else:
        with pytest.raises(UserError, match="there is no directory"):
            locate(spec)


floats = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@given(values=st.lists(st.sampled_from([0.0, 1.5, -3e4, float("nan"), float("inf"), -float("inf")]), max_size=9), dtype=floats)
def test_finite_is_isfinite(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values, dtype=dtype)
    assert finite(x) == bool(x.isfinite().all())


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize(("name", "at"), [("model.embed_tokens.weight", -1), ("model.norm.weight", 0), ("lm_head.weight", 777)])
def test_every_element_outside_the_layers_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, name: str, at: int
) -> None:
    monkeypatch.setattr(finding, "CHUNK", chunk)
    source = Checkpoint.open(saved(tmp_path))
    check_outer(source)
    x = source.read(name)
    x.view(-1)[at] = float("nan")
    change(tmp_path, **{name.replace(".", "__"): x})
    with pytest.raises(UserError, match=f"the weight {name!r} in .* holds NaN or infinity"):
        check_outer(Checkpoint.open(tmp_path))


def test_a_model_in_memory_is_blamed_by_name() -> None:
    model: Any = tiny_model("llama", torch.float32)
    source = ModuleSource.of(model)
    assert "layer 1 gives NaN or infinity although its weights are finite" in str(blame(source, 1))
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 3] = float("inf")
    assert "'model.embed_tokens.weight' of the model in memory holds" in str(blame(source, 1))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    assert "layer 1: the weight 'model.layers.1.mlp.up_proj.weight' of the model" in str(blame(source, 1))
