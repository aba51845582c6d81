"""A layer's stages, for every family: their order, what they read, and what is seen of them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from secateur.surgery.stages import Stage, added, later_readers, look, readers, stages
from tests.contract.layer import FirstLayer, first_layer
from tests.contract.masking import layers_of, logits
from tests.contract.tiny import VARIANTS, tiny_model, tiny_tokens

# The readers whose output goes through a norm before it reaches the end of the layer; of all other variants, none does.
NORMED = {
    "gemma2": {"o_proj", "down_proj"},
    "gemma3_text": {"o_proj", "down_proj"},
    "bloom-post-norm": {"dense"},  # the MLP's residual is what the norm gives
    "opt-350m": {"out_proj", "fc2"},
}
NORMED |= {f"{name}-bias": NORMED[name] for name in ("gemma2", "gemma3_text")}


def opened(variant: str) -> tuple[nn.Module, FirstLayer]:
    model_type, overrides = VARIANTS[variant]
    model = tiny_model(model_type, **overrides)
    return model, first_layer(model, tiny_tokens(3, 9))


def matrices(model: nn.Module) -> list[str]:
    return [name.removesuffix(".weight") for name, p in layers_of(model)[0].named_parameters() if p.dim() == 2]


def seen_by_the_model(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path -> what it read and said in the model's own forward, in that order."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    layer = layers_of(model)[0]

    def see(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            found[name] = args[0], out

        return hook

    hooks = [layer.get_submodule(name).register_forward_hook(see(name)) for name in matrices(model)]
    logits(model, tiny_tokens(3, 9))
    for hook in hooks:
        hook.remove()
    return found


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_stands_in_one_stage_in_the_order_of_the_forward(variant: str):
    model, layer = opened(variant)
    order = stages(layer.binding, layer.module, layer.run)
    names = [name for stage in order for name in stage.modules]
    seen = seen_by_the_model(model)
    assert sorted(names) == sorted(matrices(model))
    at = [[list(seen).index(name) for name in stage.modules] for stage in order]
    assert [min(places) for places in at] == sorted(min(places) for places in at)
    assert all(places == sorted(places) for places in at)
    assert not hooks_of(layer.module)


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_that_read_one_input_make_one_stage(variant: str):
    model, layer = opened(variant)
    order = stages(layer.binding, layer.module, layer.run)
    seen = seen_by_the_model(model)
    biased = {name: layers_of(model)[0].get_submodule(name).bias is not None for name in seen}
    stage_of = {name: stage for stage in order for name in stage.modules}
    for a, (x, _) in seen.items():
        assert stage_of[a].biased == biased[a]
        for b, (y, _) in seen.items():
            same = x.shape == y.shape and torch.equal(x, y) and biased[a] == biased[b]
            assert (stage_of[a] is stage_of[b]) == same, (a, b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_readers_stand_alone_behind_all_that_makes_what_they_read(variant: str):
    _, layer = opened(variant)
    order, binding = stages(layer.binding, layer.module, layer.run), layer.binding
    reading = {name: at for at, stage in enumerate(order) for name in stage.modules if stage.reader}
    assert reading.keys() == readers(binding) and len(reading) == 2
    assert all(len(order[at].modules) == 1 for at in reading.values())
    for axis in binding.prunable:
        (reader,) = (name.removesuffix(".weight") for name in binding.readers(axis))
        for at, stage in enumerate(order):
            makers = [m for m in stage.modules if m != reader and binding.layer[f"{m}.weight"].mentions(axis)]
            assert not makers or at < reading[reader]
    assert [later_readers(order, at) for at in sorted(reading.values())] == [(max(reading, key=reading.__getitem__),), ()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_whether_a_reader_is_added_to_the_stream_is_found_out(variant: str):
    _, layer = opened(variant)
    order = stages(layer.binding, layer.module, layer.run)
    found = {
        stage.modules[0].rpartition(".")[2]
        for at, stage in enumerate(order)
        if stage.reader and not added(layer.module, layer.run, stage, later_readers(order, at))
    }
    assert found == NORMED.get(variant, set())
    assert not hooks_of(layer.module)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_look_sees_what_the_model_computes(variant: str):
    model, layer = opened(variant)
    seen, whole = seen_by_the_model(model), layer.run()
    order = stages(layer.binding, layer.module, layer.run)
    for at, stage in enumerate(order):
        found = look(layer.module, layer.run, stage, later_readers(order, at))
        assert not hooks_of(layer.module)
        assert found.outputs.keys() == set(stage.modules)
        for name in stage.modules:
            x, y = seen[name]
            torch.testing.assert_close(found.input, x, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.outputs[name], y, rtol=1e-12, atol=1e-12)
        assert (found.stream is not None) == stage.reader
        if found.stream is not None:
            assert found.stream.shape == whole.shape
    assert torch.equal(layer.run(), whole), "no look has changed the layer"


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in NORMED])
def test_the_stream_and_what_readers_say_add_up_to_the_layer(variant: str):
    """From the first reader's place on: stream + its output + the next one's = what the layer gives."""
    _, layer = opened(variant)
    order = [s for s in stages(layer.binding, layer.module, layer.run) if s.reader]
    first, second = (look(layer.module, layer.run, s, later_readers(order, at)) for at, s in enumerate(order))
    assert first.stream is not None and second.stream is not None
    said = [found.outputs[stage.modules[0]].view_as(layer.hidden) for found, stage in zip((first, second), order, strict=True)]
    torch.testing.assert_close(first.stream + said[0], second.stream, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second.stream + said[1], layer.run(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.stream, layer.hidden, rtol=1e-12, atol=1e-12)


def test_a_look_at_a_stage_that_does_not_read_goes_no_further():
    _, layer = opened("llama")
    order = stages(layer.binding, layer.module, layer.run)
    heard: list[str] = []
    hooks = [
        layer.module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: heard.append(name))
        for stage in order
        for name in stage.modules
    ]
    found = look(layer.module, layer.run, order[0], later_readers(order, 0))
    for hook in hooks:
        hook.remove()
    assert order[0] == Stage(modules=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), reader=False, biased=False)
    assert found.stream is None and set(heard) == set(order[0].modules)


def test_a_run_that_fails_leaves_no_hooks_and_is_not_hushed_up():
    _, layer = opened("gpt2")
    order = stages(layer.binding, layer.module, layer.run)

    def fails() -> Tensor:
        layer.run()
        raise ZeroDivisionError("of the run's own")

    for stage in (s for s in order if s.reader):
        with pytest.raises(ZeroDivisionError, match="run's own"):
            look(layer.module, fails, stage)
        with pytest.raises(ZeroDivisionError, match="run's own"):
            added(layer.module, fails, stage, ())
        assert not hooks_of(layer.module)


def test_matrices_of_one_input_with_a_bias_and_without_do_not_share_a_stage():
    """No family has such; an intercept belongs to a whole stage."""
    _, layer = opened("llama-bias")
    specs = {name: spec for name, spec in layer.binding.layer.items() if name != "self_attn.k_proj.bias"}
    order = stages(replace(layer.binding, layer=specs), layer.module, layer.run)
    assert [(s.modules, s.biased) for s in order[:2]] == [
        (("self_attn.q_proj", "self_attn.v_proj"), True),
        (("self_attn.k_proj",), False),
    ]


@pytest.mark.parametrize("normed", [False, True])
def test_a_norm_is_seen_even_where_the_stream_is_even_already(normed: bool):
    """Every token of the stream has the size that the norm would give it."""
    module = nn.ModuleDict({"reader": nn.Linear(8, 8, dtype=torch.float64)}).requires_grad_(False)
    even = nn.RMSNorm(8, elementwise_affine=False, dtype=torch.float64)
    hidden = even(torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def run() -> Tensor:
        said = module["reader"](hidden)
        return hidden + (even(said) if normed else said)

    assert added(module, run, Stage(modules=("reader",), reader=True, biased=True), ()) == (not normed)
