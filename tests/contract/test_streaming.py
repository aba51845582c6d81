"""Contract of the walk: for every family, streamed layers are the model itself, and what they are seen to read is what it reads."""

import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.evaluation.perplexity import measure
from secateur.families.binding import bind
from secateur.plan import Plan
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.collect import Request, Store, collect
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.module import ModuleSource
from secateur.streaming.source import Source
from secateur.streaming.walk import Walk
from secateur.surgery.compensate import NoCompensation
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import Verifier
from secateur.surgery.write import Shards, write
from tests.contract.masking import Float64, draw_kept, logits, masked
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_model, tiny_tokens

CPU = torch.device("cpu")

F64 = torch.float64


def walked(source: Source, ids: torch.Tensor, *, tokens: int = 10_000, directory: Path | None = None, spill: bool = False):
    """Logits of a whole walk."""
    walk = Walk.over(source, device=CPU, dtype=F64, tokens=tokens)
    hidden = HiddenStates((*ids.shape, source.binding.sizes["hidden"]), F64, directory=directory, spill=spill)
    with Float64():
        walk.start(ids, hidden)
        for _ in walk.layers(hidden):
            pass
        out = torch.full((*ids.shape, source.binding.sizes["vocab"]), torch.nan, dtype=F64)
        for first, position, piece in walk.logits(hidden, tokens=max(4, tokens // 3)):
            out[first : first + len(piece), position : position + piece.shape[1]] = piece
    return out


def saved(model: torch.nn.Module, directory: Path, **options: str) -> Path:
    model.save_pretrained(directory, **options)
    return directory


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_walk_over_a_model_in_memory_is_the_model(variant: str, attention: str):
    model_type, overrides = VARIANTS[variant]
    if attention == "sdpa" and model_type in ("gemma2", "gpt_neo", "bloom"):
        attention = "eager"  # these classes have no other
    model = tiny_model(model_type, attention=attention, **overrides)
    ids = tiny_tokens(3, 11)
    torch.testing.assert_close(walked(ModuleSource.of(model), ids), logits(model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_walks_as_the_model_it_holds(variant: str, tmp_path: Path):
    model_type, overrides = VARIANTS[variant]
    model = tiny_model(model_type, **overrides)
    source = Checkpoint.open(saved(model, tmp_path / "model", max_shard_size="20KB"))
    assert not source.unused
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert source.num_parameters == sum(p.numel() for p in model.parameters())
    ids = tiny_tokens(5, 7)
    (tmp_path / "run").mkdir()
    # 2 blocks a micro-batch leave a smaller last one; the spilled walk must not differ by a bit.
    plain = walked(source, ids, tokens=14)
    torch.testing.assert_close(plain, logits(model, ids), rtol=1e-9, atol=1e-9)
    assert torch.equal(plain, walked(source, ids, tokens=14, directory=tmp_path / "run", spill=True))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_perplexity_is_the_loss_that_transformers_computes(model_type: str):
    model = tiny_model(model_type, dtype=torch.float32)
    ids = tiny_tokens(4, 16)
    found = measure(Walk.over(ModuleSource.of(model), device=CPU, dtype=torch.float32, tokens=32), ids)
    with torch.no_grad():
        expected = [model(row[None], labels=row[None]).loss.item() for row in ids]
    torch.testing.assert_close(found.windows, torch.tensor(expected, dtype=F64), rtol=1e-4, atol=0)
    assert found.predicted == 4 * 15
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / 4), rel=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_statistics_of_a_walk_are_those_of_what_modules_read(model_type: str, tmp_path: Path):
    model = tiny_model(model_type)
    source = ModuleSource.of(model)
    binding = source.binding
    request = Request.of(binding, ("ffn", "kv"), {"moments", "gram"}) | Request.of(
        binding, ("ffn", "kv"), {"moments"}, "coupled"
    )
    ids = tiny_tokens(4, 8)
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if any(name.endswith(path) for path in request.kinds):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
            )
    logits(model, ids)
    store = Store(directory=tmp_path)
    with Float64():
        assert list(collect(Walk.over(source, device=CPU, dtype=F64, tokens=16), ids, request, store)) == [0, 1]
    for layer in range(binding.num_layers):
        found = store.load(layer)
        assert set(found) == set(request.kinds)
        for path, kinds in found.items():
            (inputs,) = seen[f"{binding.family.layers}.{layer}.{path}"]
            expected = Moments.of(inputs)
            torch.testing.assert_close(kinds["moments"].mean, expected.mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(kinds["moments"].m2, expected.m2, rtol=1e-9, atol=1e-9)
            if "gram" in kinds:
                torch.testing.assert_close(kinds["gram"].matrix.double(), Gram.of(inputs).matrix, rtol=1e-6, atol=1e-6)
    assert not list(tmp_path.glob("hidden-*")), "boundaries of a finished walk are thrown away"


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_plans_are_written_checked_and_walked_as_the_masked_model(variant: str, tmp_path: Path):
    """Surgery end to end in float64: unequal layers, every axis, streamed shard to shard, streamed again from the result."""
    model_type, overrides = VARIANTS[variant]
    model = tiny_model(model_type, **overrides)
    source = Checkpoint.open(saved(model, tmp_path / "model", max_shard_size="20KB"))
    rng = random.Random(variant)
    layers = tuple(draw_kept(source.binding.sizes, source.binding.prunable, rng) for _ in range(source.binding.num_layers))
    plan = Plan(model_type=model_type, fingerprint=source.fingerprint, sizes=dict(source.binding.sizes), layers=layers)
    rebuild = Rebuild(
        source=source, target=bind(source.binding.config, dtype=F64), plan=plan, compensation=NoCompensation(),
        seen=lambda layer, module: {},
    )  # fmt: skip
    ids = tiny_tokens(3, 9)
    out = tmp_path / "out"
    out.mkdir()
    with Float64():
        verifier = Verifier(rebuild, ids)
        assert list(write(rebuild, source, Shards.of(rebuild, source, limit=10_000), out, verifier)) == [0, 1]
    assert max(verifier.errors) < 1e-12
    keys = {key for path in (tmp_path / "model").glob("*.safetensors") for key in load_file(path)}
    assert {key for path in out.glob("*.safetensors") for key in load_file(path)} == keys
    source.binding.config.save_pretrained(out)
    (out / "secateur.json").write_text('{"stock": false, "plan": ' + plan.to_json() + "}")
    expected = logits(masked(model, layers), ids)
    torch.testing.assert_close(walked(Checkpoint.open(out), ids), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axis", ["ffn", "kv"])
def test_the_check_after_writing_sees_a_unit_out_of_place(axis: str, tmp_path: Path):
    model = tiny_model("llama")
    source = Checkpoint.open(saved(model, tmp_path / "model"))
    kept = {axis: tuple(range(source.binding.sizes[axis] // 2))}
    plan = Plan(model_type="llama", fingerprint="", sizes=dict(source.binding.sizes), layers=(kept, kept))
    rebuild = Rebuild(source=source, target=source.binding, plan=plan, compensation=NoCompensation(), seen=lambda *_: {})
    new = dict(rebuild.layer(0))
    Verifier(rebuild, tiny_tokens(2, 8)).check(0, new)
    name = "mlp.up_proj.weight" if axis == "ffn" else "self_attn.v_proj.weight"
    new[name] = new[name].flip(0)
    with pytest.raises(Exception, match="failed its check at layer 0"):
        Verifier(rebuild, tiny_tokens(2, 8)).check(0, new)


@pytest.mark.parametrize(
    ("model_type", "spelling"),
    [
        ("gpt2", lambda key: key.removeprefix("transformer.")),
        ("bloom", lambda key: key.removeprefix("transformer.")),
        ("gpt_neox", lambda key: key.replace("lm_head.", "embed_out.")),
        ("llama", lambda key: key.removeprefix("model.")),
    ],
)
def test_old_spellings_are_read_as_from_pretrained_reads_them_and_kept(model_type: str, spelling, tmp_path: Path):
    model = tiny_model(model_type)
    saved(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {spelling(key): value for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    again = type(model).from_pretrained(tmp_path / "model", dtype=F64, attn_implementation="eager").eval()
    ids = tiny_tokens()
    torch.testing.assert_close(logits(again, ids), logits(model, ids))
    source = Checkpoint.open(tmp_path / "model")
    torch.testing.assert_close(walked(source, ids), logits(model, ids), rtol=1e-9, atol=1e-9)
    plan = Plan(
        model_type=model_type, fingerprint="", sizes=dict(source.binding.sizes), layers=({"ffn": (0, 1)}, {"ffn": (2, 3)})
    )
    rebuild = Rebuild(source=source, target=source.binding, plan=plan, compensation=NoCompensation(), seen=lambda *_: {})
    (tmp_path / "out").mkdir()
    assert len(list(write(rebuild, source, Shards.of(rebuild, source), tmp_path / "out"))) == 2
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(tensors)


def test_buffers_of_old_checkpoints_are_left_out_and_named(tmp_path: Path):
    model = tiny_model("gpt2")
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    extra = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    source = Checkpoint.open(tmp_path)
    assert source.unused == tuple(extra)
    torch.testing.assert_close(walked(source, tiny_tokens()), logits(model, tiny_tokens()), rtol=1e-9, atol=1e-9)
