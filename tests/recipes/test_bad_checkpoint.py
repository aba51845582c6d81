"""Checkpoints that are broken, foreign or dangerous: the file, the layer or the weight is named, and nothing is written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
from tests.recipes.refusal import command, job, refused, refused_eval, rewrite, statistics
from tests.recipes.tiny_checkpoint import text_beside

Make = Callable[..., Path]
INDEX, SHARDED = "model.safetensors.index.json", "30KB"
DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"


def weights(model: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = model / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


CONFIGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"model_type": "mixtral"}, ["'mixtral' is not supported", "gpt_neox", "write a table", "docs/families.md"]),
    ({"model_type": ...}, ["config.json has no `model_type`"]),
    ({"model_type": ["llama"]}, ["config.json has no `model_type`"]),
    ({"hidden_size": "big"}, ["config.json is not a valid 'llama' configuration", "hidden_size"]),
    ({"num_attention_heads": 7}, ["config.json is not a valid 'llama' configuration", "multiple of the number of attention"]),
    ({"hidden_act": "relu7"}, ["config.json is not a valid 'llama' configuration", "relu7"]),
    ({"pad_token_id": 1000}, ["config.json is not a valid 'llama' configuration", "adding_idx"]),
    ({"num_hidden_layers": 0}, ["a model without layers"]),
    ({"intermediate_size": 40}, ["'model.layers.0.mlp.gate_proj.weight'", "shape [36, 48]", "says [40, 48]"]),
    ({"vocab_size": 65}, ["'model.embed_tokens.weight'", "shape [64, 48]", "says [65, 48]"]),
    ({"num_hidden_layers": 3}, ["'model.layers.2.", "in no file of", "incomplete"]),
    ({"quantization_config": {"quant_method": "gptq"}}, ["is quantised", "(gptq)", "prune the unquantised model"]),
    ({"quantization_config": "?"}, ["is quantised", "prune the unquantised model"]),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, ["its own model code (AutoModelForCausalLM)", "--trust-remote-code"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), CONFIGS, ids=lambda value: str(value)[:50])
def test_configurations_that_cannot_be_used_are_refused(checkpoint: Make, changes: dict[str, Any], says: list[str]) -> None:
    model = checkpoint("llama")
    rewrite(model / "config.json", **changes)
    message = refused(model, **job(model))
    assert all(part in message for part in says), message
    assert not (model.parent / ".secateur").exists()


@pytest.mark.parametrize(
    ("body", "says"), [(None, "cannot be read"), (b"{", "is not JSON"), (b"\xff\xff", "is not JSON"), (b"[]", "no `model_type`"),
                       (b"[" * 100_000, "is not JSON")], ids=["missing", "cut", "binary", "list", "deep"],
)  # fmt: skip
def test_a_config_file_that_cannot_be_read_is_refused(checkpoint: Make, body: bytes | None, says: str) -> None:
    model = checkpoint("llama")
    (model / "config.json").unlink() if body is None else (model / "config.json").write_bytes(body)
    message = refused(model, **job(model))
    assert str(model / "config.json") in message and says in message


def test_a_null_quantization_and_an_empty_auto_map_are_nothing(checkpoint: Make) -> None:
    model = checkpoint("llama")
    rewrite(model / "config.json", quantization_config=None, auto_map={})
    assert secateur.prune(model, **job(model)).stock


CODE = """
from pathlib import Path
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
Path({ran!r}).touch()
class Own(LlamaConfig): pass
class Model(LlamaForCausalLM):
    config_class = Own
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.act_fn = nn.Tanh()
"""


def test_code_that_comes_with_a_model_is_not_run_unless_asked(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("llama")
    ran = model.parent / "ran"
    rewrite(model / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"})
    (model / "own.py").write_text(CODE.format(ran=str(ran)))
    assert "read the code" in refused(model, **job(model))
    assert "read the code" in refused_eval(model, text=str(text_beside(model)), seq_len=16)
    assert type(secateur.load(model)).__name__ == "LlamaForCausalLM"
    assert not ran.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(model.parent / "modules"))
    monkeypatch.syspath_prepend(model.parent / "modules")
    made = secateur.prune(model, **job(model), trust_remote_code=True)
    assert ran.exists() and made.ratio_reached > 0.2
    assert made.load.endswith(", trust_remote_code=True)") and "runs the code that the model brings" in " ".join(made.notes)
    other = AutoModelForCausalLM.from_pretrained(made.out, trust_remote_code=True).eval()
    assert type(other.model.layers[0].mlp.act_fn).__name__ == "Tanh"
    plain = secateur.prune(checkpoint("mistral"), **job(model, out=model.parent / "plain"), trust_remote_code=True)
    assert plain.load.endswith("plain')")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), ["is missing", "Download the checkpoint again"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), ["truncated or corrupt", "its header needs", "again"]),
        (lambda path: path.write_bytes(b""), ["truncated or corrupt", "it has 0 bytes"]),
        (lambda path: path.write_bytes(path.read_bytes()[:8] + b"x" * (path.stat().st_size - 8)), ["header is not JSON"]),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), ["truncated or corrupt"]),
    ],
    ids=["missing", "truncated", "empty", "garbled", "longer"],
)
def test_a_broken_shard_is_named(checkpoint: Make, damage: Callable[[Path], Any], says: list[str]) -> None:
    model = checkpoint("llama", shard=SHARDED)
    shard = model / "model-00002-of-00005.safetensors"
    damage(shard)
    message = refused(model, **job(model))
    assert all(part in message for part in [str(shard), *says]), message


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "sub/x.safetensors", "..", ""])
def test_an_index_may_not_point_outside_its_directory(checkpoint: Make, name: str) -> None:
    model = checkpoint("llama", shard=SHARDED)
    (model.parent / "secret").write_bytes((model / "model-00001-of-00005.safetensors").read_bytes())
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (model / INDEX).write_text(json.dumps(index))
    message = refused(model, **job(model))
    assert str(model / INDEX) in message and f"points outside its directory: {name!r}" in message


@pytest.mark.parametrize("body", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{}"])
def test_an_index_that_is_none_is_refused(checkpoint: Make, body: str) -> None:
    model = checkpoint("llama", shard=SHARDED)
    (model / INDEX).write_text(body)
    assert str(model / INDEX) in refused(model, **job(model))


def test_a_weight_in_no_file_is_named(checkpoint: Make) -> None:
    model = checkpoint("llama", shard=SHARDED)
    index = json.loads((model / INDEX).read_text())
    shard = model / index["weight_map"][DOWN]
    save_file({name: x for name, x in load_file(shard).items() if name != DOWN}, shard)
    assert f"the weight {DOWN!r} is in no file of {model}" in refused(model, **job(model))


@pytest.mark.parametrize(
    ("dtype", "says"),
    [(torch.int8, "is quantised"), (torch.float8_e4m3fn, "is quantised"), (torch.uint8, "is quantised"), (torch.int64, "is quantised"),
     (torch.uint16, "in the type U16")], ids=str,
)  # fmt: skip
def test_weights_in_integers_and_eight_bits_are_refused(checkpoint: Make, dtype: torch.dtype, says: str) -> None:
    model = checkpoint("llama")
    weights(model, lambda found: {n: x.to(dtype) if n == DOWN else x for n, x in found.items()})
    message = refused(model, **job(model))
    assert says in message and "unquantised" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickles_are_refused(checkpoint: Make, name: str) -> None:
    model = checkpoint("llama")
    (model / "model.safetensors").rename(model / name)
    message = refused(model, **job(model))
    assert all(part in message for part in (name, "pickles only", "safetensors", "save_pretrained"))


def test_places_without_a_model_are_refused(checkpoint: Make) -> None:
    model = checkpoint("llama")
    home, options = model.parent, job(model)
    assert "is a file" in refused(model / "config.json", home=home, **options)
    assert "there is no directory" in refused(home / "nowhere", home=home, **options)
    assert "there is no directory './nowhere'" in refused("./nowhere", home=home, **options)
    unreachable = refused("nobody/no-such-model", home=home, **options)
    assert "could not be had from the hub" in unreachable and "give a local directory" in unreachable
    (model / "model.safetensors").rename(home / "elsewhere")
    assert "no weights to read" in refused(model, **options)
    shutil.move(home / "elsewhere", model / "model.safetensors")
    (model / "tokenizer.json").unlink()
    assert "no tokenizer in" in refused(model, **options)
    (model / "tokenizer.json").write_text("{")
    assert "cannot be loaded" in refused(model, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["flap", "magnitude"])
@pytest.mark.parametrize("name", [DOWN, NORM, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_not_finite_is_named(checkpoint: Make, value: float, method: str, name: str) -> None:
    model = checkpoint("llama")
    # A row of the embedding that no text reads, and the first element elsewhere.
    at = -1 if "embed" in name else 0
    weights(model, lambda found: found | {name: found[name].flatten().index_fill(0, torch.tensor([at]) % found[name].numel(), value)
                                          .view_as(found[name])})  # fmt: skip
    compensate = "least-squares" if method == "flap" else "none"
    message = refused(model, **job(model, method=method, compensate=compensate))
    assert repr(name) in message and "NaN or infinity" in message and "get a sound copy" in message
    if "layers" in name:
        assert f"layer {name.split('.')[2]}" in message
    assert statistics(model.parent) == (["layer-000.safetensors"] if (name, method) == (DOWN, "flap") else [])
    assert message == refused_eval(model, text=str(text_beside(model)), seq_len=16)


def test_a_statistic_that_overflows_is_named_with_its_layer(checkpoint: Make) -> None:
    model = checkpoint("llama")
    up, down = "model.layers.1.mlp.up_proj.weight", DOWN
    weights(model, lambda found: found | {up: found[up] * 1e20, down: found[down] * 1e-20})
    message = refused(model, **job(model))
    assert "layer 1, the input of mlp.down_proj: its gram statistic holds NaN or infinity" in message
    assert statistics(model.parent) == ["layer-000.safetensors"], "the finished layer is kept, the bad one is not"
    assert secateur.prune(model, **job(model, compensate="none")).ratio_reached > 0.2, (
        "moments are float64, and do not overflow"
    )


def test_activations_that_overflow_are_not_blamed_on_a_weight(checkpoint: Make) -> None:
    model = checkpoint("llama")
    large = ("model.layers.1.mlp.up_proj.weight", DOWN)
    weights(model, lambda found: found | {name: found[name] * 1e30 for name in large})
    says = "layer 1 gives NaN or infinity although its weights are finite: the activations overflow"
    for options in (
        {},
        {"method": "magnitude", "compensate": "none"},
    ):  # seen by the walk, and by the check of what was written
        message = refused(model, **job(model, **options))
        assert says in message and "--dtype" in message


def test_a_hub_model_in_the_local_cache_becomes_real_files(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("llama", shard=SHARDED)
    repository = tmp_path / "hub" / "models--somebody--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("0" * 40)
    for directory in (blobs, snapshot, repository / "refs"):
        directory.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(blobs / f"{number:040d}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040d}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    made = secateur.prune("somebody/tiny", **job(model))
    assert not [path for path in Path(made.out).rglob("*") if path.is_symlink()]
    shutil.rmtree(tmp_path / "hub" / "models--somebody--tiny" / "blobs")
    assert secateur.load(made.out).num_parameters() == made.parameters_after
    assert secateur.evaluate(made.out, text=str(text_beside(model)), seq_len=16).perplexity > 1
    assert "somebody/tiny" in (Path(made.out) / "README.md").read_text()


@pytest.fixture
def unequal(checkpoint: Make) -> Path:
    model = checkpoint("llama")
    secateur.prune(model, **job(model, allocation="global"))
    return model.parent / "out"


def test_unequal_layers_are_evaluated_but_not_pruned_again(unequal: Path) -> None:
    again = job(unequal, out=unequal.parent / "again")
    assert "was pruned already" in refused(unequal, **again)
    assert command("eval", str(unequal), text=text_beside(unequal), seq_len=16).exit_code == 0


@pytest.mark.parametrize(
    "damage",
    [lambda body: "{", lambda body: "[]", lambda body: json.dumps({**body, "plan": 3}), lambda body: "[" * 100_000,
     lambda body: json.dumps({**body, "plan": body["plan"] | {"format": 99}}),
     lambda body: json.dumps({**body, "plan": body["plan"] | {"layers": body["plan"]["layers"][:1]}})],
    ids=["cut", "list", "no plan", "deep", "format", "fewer layers"],
)  # fmt: skip
def test_a_damaged_record_is_named(unequal: Path, damage: Callable[[dict[str, Any]], str]) -> None:
    record = unequal / "secateur.json"
    record.write_text(damage(json.loads(record.read_text())))
    assert str(record) in refused_eval(unequal, text=str(text_beside(unequal)), seq_len=16)
    with pytest.raises(secateur.UserError, match="secateur.json"):
        secateur.load(unequal)


def test_a_missing_record_does_no_harm(unequal: Path) -> None:
    before = secateur.evaluate(unequal, text=str(text_beside(unequal)), seq_len=16).perplexity
    (unequal / "secateur.json").unlink()
    assert secateur.evaluate(unequal, text=str(text_beside(unequal)), seq_len=16).perplexity == before
    assert secateur.load(unequal).config.model_type == "secateur_llama"


def test_a_missing_record_is_suspected_where_only_that_tells_the_sizes(unequal: Path, checkpoint: Make) -> None:
    """As in directories that secateur once wrote."""
    (unequal / "secateur.json").unlink()
    shutil.copyfile(unequal.parent / "model" / "config.json", unequal / "config.json")
    assert "secateur.json is missing" in refused_eval(unequal, text=str(text_beside(unequal)), seq_len=16)
    with pytest.raises(secateur.UserError, match="cannot be loaded.*secateur.json"):
        secateur.load(unequal)


@pytest.mark.parametrize(
    "damage",
    [lambda body: body.pop("secateur"), lambda body: body.pop("auto_map"), lambda body: body["secateur"].pop("sizes"),
     lambda body: body["secateur"]["sizes"].pop(), lambda body: body["secateur"]["fields"].clear(),
     lambda body: body["auto_map"].update(AutoConfig="own.Own")],
    ids=["facts", "auto_map", "sizes", "a layer", "fields", "another class"],
)  # fmt: skip
def test_a_damaged_configuration_of_unequal_layers_is_named(unequal: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    path = unequal / "config.json"
    body = json.loads(path.read_text())
    damage(body)
    path.write_text(json.dumps(body))
    assert str(path) in refused_eval(unequal, text=str(text_beside(unequal)), seq_len=16)
    with pytest.raises(secateur.UserError, match="config.json"):
        secateur.load(unequal)


def test_a_real_process_says_one_line_and_ends_with_2(checkpoint: Make) -> None:
    model = checkpoint("llama")
    (model / "model.safetensors").write_bytes(b"nothing")
    flags = ["--out", str(model.parent / "out"), "--ratio", "0.3", "--calibration", str(text_beside(model))]
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "prune", str(model), *flags], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"error: the weights file {model / 'model.safetensors'} is truncated or corrupt")
