"""Contract of the walk that refits: for every family, what it writes is sequential least squares, whatever it is cut into."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import axes
from secateur.axes import Kept
from secateur.families.binding import bind
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.module import ModuleSource
from secateur.streaming.tensorfile import TensorFile
from secateur.streaming.walk import Walk
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.refit import Rewritten
from secateur.surgery.regression import RIDGES
from secateur.surgery.verify import Verifier
from secateur.surgery.write import Shards, write
from tests.contract.masking import Float64, forward, layers_of, logits, masked, naive_mask, sizes_of, specs_of
from tests.contract.refitting import CPU, F64, IDS, done, kept_of, near, task, weights_of
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_model
from tests.reference.ridge import held_out_errors
from tests.reference.sequential import STEPS, refitted, small_weights


def put_back(model: nn.Module, layers: Sequence[Kept], rewritten: Rewritten) -> nn.Module:
    """The masked original with the refitted weights in the places of the units that stay."""
    result, sizes, specs = masked(model, layers), sizes_of(model), specs_of(model)
    names = {id(p): name for name, p in result.named_parameters()}
    with torch.no_grad():
        for number, kept in enumerate(layers):
            own = dict(layers_of(result)[number].named_parameters())
            for name, x in rewritten.load(number).items():
                masks = [naive_mask(dim, sizes, kept) for dim in specs[names[id(own[name])]].dims]
                where = masks[0] if len(masks) == 1 else torch.outer(*masks)
                own[name][where] = x.flatten()
    return result


def streams(model: nn.Module, ids: Tensor) -> Tensor:
    """The hidden states behind the last layer, before any norm."""
    found: list[Tensor] = []
    hook = layers_of(model)[-1].register_forward_hook(
        lambda _, args, out: found.append(out[0] if isinstance(out, tuple) else out)
    )
    forward(model, ids)
    hook.remove()
    return found[0]


def variant_model(variant: str) -> nn.Module:
    model_type, overrides = VARIANTS[variant]
    return tiny_model(model_type, **overrides)


@pytest.mark.parametrize("variant", STEPS)
def test_it_is_what_whole_models_in_memory_give(variant: str, tmp_path: Path):
    model = variant_model(variant)
    layers = kept_of(model, variant)
    rewritten = done(task(ModuleSource.of(model), layers, tmp_path / "run", ridge=0.01))
    expected = refitted(model, layers, IDS, STEPS[variant], 0.01)
    for number, kept in enumerate(layers):
        weights = small_weights(expected, number, kept)
        original = small_weights(model, number, kept)
        found = rewritten.load(number)
        matrices = {name.removesuffix(".weight") for name, x in weights.items() if x.dim() == 2}
        if number:
            assert {name.rpartition(".")[0] for name in found} == matrices
        for name, x in found.items():
            assert near(x, weights[name], 1e-8), (number, name)
        for name in weights.keys() - found.keys():
            assert near(weights[name], original[name], 1e-10), (number, name)
        assert not near(weights[f"{STEPS[variant][-1][0]}.weight"], original[f"{STEPS[variant][-1][0]}.weight"], 1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_the_stream_that_was_refitted_to(variant: str, tmp_path: Path):
    model = variant_model(variant)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    source = Checkpoint.open(tmp_path / "model")
    layers = kept_of(model, variant)
    refit = task(source, layers, tmp_path / "run")
    with Float64():
        walk = refit.run()
        assert [next(walk) for _ in layers] == [0, 1]
        file = TensorFile.open(tmp_path / "run" / "pruned-002.safetensors")
        walk.close()
    stream = torch.stack([file.read(str(i)) for i in range(len(IDS))])
    rebuild = Rebuild(
        source=source, target=bind(source.binding.config, dtype=F64), plan=refit.plan, compensation=refit.how,
        seen=lambda layer, module: {}, rewritten=refit.rewritten.load,
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    with Float64():
        verifier = Verifier(rebuild, IDS)
        assert list(write(rebuild, source, Shards.of(rebuild, source, limit=10_000), out, verifier)) == [0, 1]
    assert max(verifier.errors) < 1e-12
    source.binding.config.save_pretrained(out)
    (out / "secateur.json").write_text('{"stock": false, "plan": ' + refit.plan.to_json() + "}")
    expected = put_back(model, layers, refit.rewritten)
    torch.testing.assert_close(streams(expected, IDS), stream, rtol=1e-9, atol=1e-9)
    small = Checkpoint.open(out)
    hidden = HiddenStates(stream.shape, F64)  # type: ignore[arg-type]
    again = Walk.over(small, device=CPU, dtype=F64)
    with Float64():
        again.start(IDS, hidden)
        list(again.layers(hidden))
    torch.testing.assert_close(hidden.get(0, len(IDS)), stream, rtol=1e-9, atol=1e-9)
    sizes = [refit.plan.layer_sizes(i) for i in range(2)]
    for (number, name), x in weights_of(refit.rewritten).items():
        assert tuple(x.shape) == axes.shape(source.binding.layer[name], sizes[number])
        assert x.dtype == source.dtype(source.binding.layer_name(number, name))


@pytest.mark.parametrize(("variant", "matrices"), [(v, "all") for v in VARIANTS] + [(m, "readers") for m in MODEL_TYPES])
def test_the_stream_comes_nearer_to_the_dense_one(variant: str, matrices: str, tmp_path: Path):
    model = variant_model(variant)
    layers = kept_of(model, variant)
    rewritten = done(task(ModuleSource.of(model), layers, tmp_path / "run", ridge=1e-6, matrices=matrices))
    dense = streams(model, IDS)
    before, after = (
        float((streams(small, IDS) - dense).square().sum()) for small in (masked(model, layers), put_back(model, layers, rewritten))
    )  # fmt: skip
    assert after < before


@pytest.mark.parametrize(("variant", "whole"), [(v, "named") for v in VARIANTS] + [("llama", "empty")])
def test_a_plan_that_removes_nothing_rewrites_nothing(variant: str, whole: str, tmp_path: Path):
    model = variant_model(variant)
    source = ModuleSource.of(model)
    sizes = source.binding.sizes
    every: dict[str, Any] = {axis: tuple(range(sizes[axis])) for axis in source.binding.prunable if axis != "group"}
    if "group" in source.binding.prunable:
        every["group"] = (tuple(range(sizes["group"])),) * sizes["kv"]
    kept = {} if whole == "empty" else every
    refit = task(source, (kept, kept), tmp_path / "run", tokens=40)
    assert weights_of(done(refit)) == {} and refit.report == []


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_readers_alone_are_refitted_where_that_is_asked(model_type: str, tmp_path: Path):
    model = tiny_model(model_type)
    source = ModuleSource.of(model)
    refit = task(source, kept_of(model, model_type), tmp_path / "run", matrices="readers", ridge=0.01)
    names = {name.rpartition(".")[0] for _, name in weights_of(done(refit))}
    assert names == {n.removesuffix(".weight") for axis in source.binding.prunable for n in source.binding.readers(axis)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_micro_batches_and_spilling_do_not_matter(variant: str, tmp_path: Path):
    model = variant_model(variant)
    source, layers = ModuleSource.of(model), kept_of(model, variant)
    whole = task(source, layers, tmp_path / "whole")
    expected = weights_of(done(whole))
    # 2 blocks at a time leave a smaller last micro-batch.
    for name, options in {"two": {"tokens": 24}, "spilled": {"tokens": 24, "spill": True}}.items():
        refit = task(source, layers, tmp_path / name, **options)
        found = weights_of(done(refit))
        assert found.keys() == expected.keys()
        assert not [key for key, x in found.items() if not near(x, expected[key], 1e-9)]
        assert [(n["layer"], n["module"], n["ridge"]) for n in refit.report] == [
            (n["layer"], n["module"], n["ridge"]) for n in whole.report
        ]
    assert all(
        torch.equal(x, y)
        for x, y in zip(weights_of(Rewritten(directory=tmp_path / "two")).values(), found.values(), strict=True)
    ), "a spilled walk must not differ by a bit"


def heard(model: nn.Module, module: str) -> Tensor:
    """What a module of the first layer read: [block, token, channel]."""
    found: list[Tensor] = []
    hook = layers_of(model)[0].get_submodule(module).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    logits(model, IDS)
    hook.remove()
    return found[0]


@pytest.mark.parametrize(("blocks", "held"), [(9, [3, 7]), (4, [3]), (3, [2]), (2, [1])])
def test_the_ridge_is_chosen_on_every_fourth_block(blocks: int, held: list[int], tmp_path: Path):
    """Seen at the first reader: nothing else has changed before it."""
    model = tiny_model("llama")
    layers = kept_of(model, "llama")
    refit = task(ModuleSource.of(model), layers, tmp_path / "run", ids=IDS[:blocks], tokens=24)
    done(refit)
    (note,) = (n for n in refit.report if n["layer"] == 0 and n["module"] == "self_attn.o_proj")
    chosen = torch.zeros(blocks, 12, dtype=torch.bool)
    chosen[held] = True
    assert_chosen(note, model, layers, chosen)


def test_of_a_single_block_the_last_quarter_chooses_the_ridge(tmp_path: Path):
    model = tiny_model("llama")
    layers = kept_of(model, "llama")
    refit = task(ModuleSource.of(model), layers, tmp_path / "run", ids=IDS[:1])
    done(refit)
    (note,) = (n for n in refit.report if n["layer"] == 0 and n["module"] == "self_attn.o_proj")
    assert_chosen(note, model, layers, torch.arange(12)[None] >= 9)


def assert_chosen(note: dict[str, Any], model: nn.Module, layers: Sequence[Kept], chosen: Tensor) -> None:
    """What is told of the first reader is the error of the chosen tokens: [block, token]."""
    (weight,) = (p for n, p in layers_of(model)[0].named_parameters() if n == "self_attn.o_proj.weight")
    mask = naive_mask(specs_of(model)["model.layers.0.self_attn.o_proj.weight"].dims[1], sizes_of(model), layers[0])
    x = heard(model, "self_attn.o_proj")[: len(chosen)]
    lack = (x * ~mask) @ weight.detach().T
    errors = held_out_errors(x[..., mask].flatten(0, 1), lack.flatten(0, 1), chosen.flatten(), RIDGES, intercept=False)
    assert note["error"] == pytest.approx(errors[RIDGES.index(note["ridge"])], rel=1e-6)  # type: ignore[arg-type]
