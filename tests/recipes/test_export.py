"""A checkpoint as a GGUF file, without llama.cpp: every number against a naive oracle, what is refused, what a mistake leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.export import gguf as gguf_file
from secateur.export.gguf import published_file
from secateur.recipes.demo import default_model
from secateur.recipes.export import NOT_RUN
from secateur.streaming.checkpoint import Checkpoint
from tests.contract.tiny import tiny_model
from tests.recipes.tiny_checkpoint import TINY, text_beside

KINDS: tuple[Any, ...] = ("f32", "f16", "bf16", "q8_0")
CLOSE = {"f32": 0.0, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2}
LLAMA = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
GPT2 = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f", "output": "lm_head",
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}  # fmt: skip
CONV1D = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
PAIRED = ("llama", "deci")


def exported(model: Path, **options: Any) -> Any:
    return secateur.export_model(model, "gguf", **{"tokenizer": False, "check": False, "dtype": "f32", **options})


def fields(path: str | Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def oracle(name: str, architecture: str, source: Checkpoint) -> torch.Tensor:
    """The weight that a tensor of the file must hold, as llama.cpp's documentation describes it, element by element."""
    names, stack = (GPT2, "transformer.h") if architecture == "gpt2" else (LLAMA, "model.layers")
    parts = name.split(".")
    base, kind = parts[-2:]
    full = f"{names[base]}.{kind}" if parts[0] != "blk" else f"{stack}.{parts[1]}.{names[base]}.{kind}"
    x = source.read(full).float()
    if architecture == "gpt2" and ".".join(parts[-2:]) in CONV1D:
        return x.T
    if architecture in PAIRED and base in ("attn_q", "attn_k"):
        size = source.binding.sizes["head_dim"]
        rows = [at // size * size + at % 2 * (size // 2) + at % size // 2 for at in range(len(x))]
        return x[rows]
    return x


def hold(path: str | Path, source: Checkpoint, dtype: str) -> set[str]:
    found = gguf.GGUFReader(path)
    architecture = found.fields["general.architecture"].contents()
    weights = [tensor for tensor in found.tensors if tensor.name != "rope_freqs.weight"]
    assert len(weights) == len(list(source.binding.names()))
    for tensor in weights:
        expected = oracle(tensor.name, architecture, source)
        stored = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        assert tuple(stored.shape) == tuple(expected.shape), tensor.name
        assert torch.allclose(stored, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype]), tensor.name
    return {tensor.tensor_type.name for tensor in found.tensors}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}), ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {"use_sliding_window": False, "layer_types": None}), ("qwen3", {}), ("mistral", {}), ("gpt2", {}),
    ],
    ids=["llama", "llama-biased-tied", "qwen2", "qwen3", "mistral", "gpt2"],
)  # fmt: skip
def test_every_number(checkpoint: Callable[..., Path], model_type: str, overrides: dict[str, Any], dtype: Any):
    model = checkpoint(model_type, **overrides, hidden_size=64)
    found = exported(model, dtype=dtype)
    assert (found.architecture, found.tokenizer) == ("llama" if model_type == "mistral" else model_type, None)
    assert found.notes[-1] == NOT_RUN
    kinds = hold(found.out, Checkpoint.open(model), dtype)
    assert kinds == {"F32", dtype.upper()} | ({"F16"} if dtype == "q8_0" else set())  # 36 channels are no multiple of 32
    narrow = 4 if model_type == "qwen3" else 2  # nor are its 8 heads of 10
    assert found.kept_wider == (narrow if dtype == "q8_0" else 0)


def test_unequal_layers(checkpoint: Callable[..., Path], tmp_path: Path):
    model = checkpoint("llama", num_hidden_layers=3)
    secateur.prune(
        model,
        out=tmp_path / "small",
        ratio=0.4,
        method="magnitude",
        allocation="global",
        calibration=str(text_beside(model)),
        **TINY,
    )
    source = Checkpoint.open(tmp_path / "small")
    found = exported(tmp_path / "small")
    assert found.architecture == "deci"
    hold(found.out, source, "f32")
    facts, binding = fields(found.out), source.binding
    sizes = [{**binding.sizes, **{axis: len(rows) for axis, rows in source.kept(i).items()}} for i in range(3)]
    assert len({str(one) for one in sizes}) > 1
    for name, values in {
        "feed_forward_length": [one["ffn"] for one in sizes], "attention.head_count": [one["kv"] * one["group"] for one in sizes],
        "attention.head_count_kv": [one["kv"] for one in sizes],
    }.items():  # fmt: skip
        assert facts[f"deci.{name}"] == (values if len(set(values)) > 1 else values[0])
    assert (facts["deci.block_count"], facts["deci.attention.key_length"]) == (3, binding.sizes["head_dim"])


def test_rotary_factors_are_those_of_transformers(checkpoint: Callable[..., Path]):
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}  # fmt: skip
    found = exported(checkpoint("llama", rope_parameters=rope, head_dim=12))
    tensor = next(t for t in gguf.GGUFReader(found.out).tensors if t.name == "rope_freqs.weight")
    plain = 500.0 ** -(torch.arange(0, 12, 2) / 12)
    long = 2 * torch.pi / plain
    smooth = (16 / long - 1) / 3
    expected = torch.where(long > 16, plain / 8, torch.where(long < 4, plain, (1 - smooth) * plain / 8 + smooth * plain))
    assert torch.allclose(plain / torch.from_numpy(np.array(tensor.data)), expected, rtol=1e-5)


def test_what_the_file_says_of_a_model_with_a_tokenizer(tmp_path: Path):
    found = exported(default_model(), tokenizer=True, dtype="bf16", out=tmp_path / "m.gguf")
    facts = fields(found.out)
    assert found.tokenizer == "gpt2 (gpt-2)"
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert (len(facts["tokenizer.ggml.tokens"]), len(facts["tokenizer.ggml.merges"])) == (4096, 3839)
    assert (facts["tokenizer.ggml.eos_token_id"], facts["tokenizer.ggml.add_bos_token"]) == (0, False)
    assert (facts["llama.context_length"], facts["llama.rope.freq_base"], facts["llama.vocab_size"]) == (512, 10000.0, 4096)
    assert "output.weight" not in {tensor.name for tensor in gguf.GGUFReader(found.out).tensors}  # tied


@pytest.mark.parametrize(
    ("model_type", "overrides", "why"),
    [
        ("gemma", {}, "GGUF of a 'gemma' model is not supported"),
        ("qwen3", {"attention_bias": True}, "it has no self_attn.q_proj.bias"),
        ("llama", {"rope_parameters": DYNAMIC}, "change with the length of the text"),
        ("llama", {"hidden_act": "gelu"}, "its activation is silu, not gelu"),
        ("gpt2", {"activation_function": "gelu"}, "its activation is gelu_new, not gelu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "it scales attention by the root of head_dim alone"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    checkpoint: Callable[..., Path], model_type: str, overrides: dict[str, Any], why: str
):
    model = checkpoint(model_type, **overrides)
    with pytest.raises(secateur.UserError, match=why):
        exported(model)
    assert not list(model.parent.glob("*gguf*"))


@pytest.mark.parametrize(
    ("model_type", "axes", "why"),
    [
        ("gpt2", "kv", "its heads together are as wide as"),
        ("gpt2", "ffn", "are all of one size"),
        ("qwen3", "ffn", "of one size"),
    ],
)
def test_what_no_architecture_holds_names_the_way_out(
    checkpoint: Callable[..., Path], tmp_path: Path, model_type: str, axes: Any, why: str
):
    model = checkpoint(model_type)
    secateur.prune(
        model, out=tmp_path / "small", ratio=0.2, axes=axes, method="magnitude", allocation="global",
        calibration=str(text_beside(model)), **TINY,
    )  # fmt: skip
    with pytest.raises(secateur.UserError, match=why) as refused:
        exported(tmp_path / "small")
    assert "Prune with --axes ffn --format stock" in str(refused.value)


def test_a_sliding_window_is_the_context(checkpoint: Callable[..., Path]):
    found = exported(checkpoint("mistral"))
    assert found.context_length == fields(found.out)["llama.context_length"] == 4
    assert "the model attends to the last 4 tokens" in found.notes[0]


def test_a_tokenizer_without_counterpart_names_the_way_out(checkpoint: Callable[..., Path]):
    model = checkpoint("llama")
    done = CliRunner().invoke(app, ["export", str(model), "--to", "gguf", "--no-check"])
    assert done.exit_code == 2
    assert "Give --no-tokenizer" in done.stderr
    done = CliRunner().invoke(app, ["export", str(model), "--to", "gguf", "--no-check", "--no-tokenizer", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["out"] == str(model.parent / "model-f16.gguf")
    assert fields(model.parent / "model-f16.gguf")["tokenizer.ggml.model"] == "none"


def test_a_linked_model_goes_by_the_name_of_its_link(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    model = checkpoint("llama")
    link = model.parent / "linked" / "mine"
    link.parent.mkdir()
    link.symlink_to(model)
    assert exported(link).out == str(link.parent / "mine-f32.gguf")
    monkeypatch.chdir(model)
    assert exported(Path()).out == str(model.parent / "model-f32.gguf")


def test_a_file_that_is_there(checkpoint: Callable[..., Path], tmp_path: Path):
    model, out = checkpoint("llama"), tmp_path / "a.gguf"
    out.write_text("mine")
    with pytest.raises(secateur.UserError, match="exists. Give another --out, or --force"):
        exported(model, out=out)
    with pytest.raises(secateur.UserError, match="is not a GGUF file: --force replaces those only"):
        exported(model, out=out, force=True)
    assert out.read_text() == "mine"
    out.unlink()
    first = exported(model, out=out).bytes
    assert exported(model, out=out, force=True, dtype="f16").bytes < first
    with pytest.raises(secateur.UserError, match="is a directory or a link"):
        exported(model, out=tmp_path)
    with pytest.raises(secateur.UserError, match="is not a directory that you may write in"):
        exported(model, out=tmp_path / "none" / "a.gguf")


def test_what_was_written_otherwise_is_not_published(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    model, honest = checkpoint("llama"), gguf_file.encode

    def flipped(x: torch.Tensor, slot: Any, origin: str) -> np.ndarray:
        data = honest(x, slot, origin)
        data[-1] ^= 0x40 if slot.name == "blk.1.ffn_up.weight" else 0
        return data

    monkeypatch.setattr(gguf_file, "encode", flipped)
    with pytest.raises(secateur.UserError, match="blk.1.ffn_up.weight is .* further from its weight than f32 allows"):
        exported(model)
    assert not list(model.parent.glob("*gguf*"))


def test_a_number_too_large_for_the_type(tmp_path: Path):
    model: Any = tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(secateur.UserError, match=r"layers.1.mlp.up_proj.weight.* has a number beyond the largest of f16"):
        exported(tmp_path / "model", dtype="f16")
    assert exported(tmp_path / "model", dtype="bf16").tensors == 21


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    out = tmp_path / "m.gguf"

    def write() -> None:
        with published_file(out) as fresh:
            fresh.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(checkpoint: Callable[..., Path]):
    model = checkpoint("llama")
    (model.parent / ".model-f32.gguf.partial-0123abcd").write_text("half")
    exported(model)
    assert [path.name for path in model.parent.glob("*gguf*")] == ["model-f32.gguf"]


def test_without_the_package(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(secateur.UserError, match="Install it: pip install secateur"):
        exported(checkpoint("llama"))


class TestOfAPruning:
    @pytest.mark.parametrize("allocation", ["uniform", "global"])
    def test_the_file_lies_beside_the_weights(self, allocation: str, tmp_path: Path) -> None:
        result = secateur.prune(
            default_model(), out=tmp_path / "small", ratio=0.3, method="flap", compensate="none", evaluation="none", samples=4,
            calibration="stdlib", format="gguf", allocation=allocation,
        )  # fmt: skip
        assert result.gguf == str(tmp_path / "small/small.gguf")
        assert fields(result.gguf)["general.architecture"] == ("llama" if allocation == "uniform" else "deci")

    @pytest.mark.parametrize("dry_run", [False, True])
    @pytest.mark.parametrize(("model_type", "says"), [("gpt2", "no architecture"), ("llama", "tokenizer")])
    def test_what_llama_cpp_cannot_hold_is_refused_first(
        self, model_type: str, says: str, dry_run: bool, checkpoint: Callable[..., Path]
    ) -> None:
        model = checkpoint(model_type)
        options: dict[str, Any] = {
            **TINY,
            "calibration": str(text_beside(model)),
            "method": "flap",
            "ratio": 0.3,
            "dry_run": dry_run,
        }
        with pytest.raises(secateur.UserError, match=f"--format gguf: .*{says}.* Or leave out --format"):
            secateur.prune(model, out=model.parent / "small", format="gguf", **options)
        assert not (model.parent / "small").exists()
