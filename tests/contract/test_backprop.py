"""Streamed backpropagation equals autograd of the whole model: every family, tied and untied heads, spilled, any micro-batches."""

import errno
from pathlib import Path

import pytest
import torch

from secateur import axes
from secateur.errors import UserError
from secateur.gradients.backprop import Backprop
from secateur.gradients.estimator import KINDS, Task, gradient_request, lines_are_columns, oriented, reader_of, unit_of_column
from secateur.gradients.samples import SampleGradients
from secateur.streaming.collect import Store
from secateur.streaming.module import ModuleSource
from secateur.streaming.tensorfile import TensorFile
from secateur.streaming.walk import Walk
from tests.contract.tiny import VARIANTS, tiny_model, tiny_tokens
from tests.reference.autograd import NoFloat32, module_gradients, whole_gradients

BLOCKS, TOKENS = 5, 12


def estimated(model: torch.nn.Module, directory: Path, dtype: torch.dtype, *, tokens: int = 2 * TOKENS, **options):
    """A task that has been carried out."""
    source = ModuleSource.of(model)
    walk = Walk.over(source, device=torch.device("cpu"), dtype=dtype, tokens=tokens)
    pruned = source.binding.prunable
    directory.mkdir(exist_ok=True)
    task = Task(
        walk=walk, ids=tiny_tokens(BLOCKS, TOKENS), axes=pruned, request=gradient_request(source.binding, pruned, KINDS),
        store=Store(directory=directory), **options,
    )  # fmt: skip
    assert [*Backprop().estimate(task)] == [0, 1, 1, 0]
    return task


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest value."""
    assert got.shape == expected.shape
    error = float((got.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert error <= tolerance, error


def check(task: Task, model: torch.nn.Module, tolerance: float) -> None:
    binding, ids = task.binding, task.ids
    modules = [place for place in task.request.kinds if place not in axes.PRUNABLE]
    for layer in range(binding.num_layers):
        seen = task.store.load(layer)
        path = {m: f"{binding.family.layers}.{layer}.{m}" for m in modules}
        taps = module_gradients(model, ids, list(path.values()))
        for axis in task.axes:
            a, gradient, _ = taps[path[reader_of(binding, axis)]]
            units = unit_of_column(binding, axis)
            t = torch.zeros(BLOCKS, int(units.max()) + 1, dtype=torch.float64)
            t.index_add_(1, units, (a.double() * gradient.double()).sum(1))
            found = seen[axis]["gate-gradient"]
            assert found.samples == BLOCKS
            close(found.signed, t.sum(0), tolerance)
            close(found.absolute, t.abs().sum(0), tolerance)
            close(found.squares, t.square().sum(0), tolerance)
        with whole_gradients(model, ids):
            gradients = {m: model.get_submodule(p).weight.grad.clone() for m, p in path.items()}
        for module, full in path.items():
            x, _, out = taps[full]
            if "output-gradient-gram" in task.request.kinds[module]:
                flat = out.flatten(0, 1).double()
                close(
                    seen[module]["output-gradient-gram"].matrix,
                    flat.mT @ flat,
                    max(tolerance, 1e-6 if x.dtype != torch.float64 else 0),
                )
            check_weight(task, module, seen[module], model.get_submodule(full).weight, gradients[module], x, out, tolerance)


def check_weight(task, module, seen, weight, gradient, x, out, tolerance) -> None:
    """The line sums of one matrix from its whole gradient and its samples' gradients."""
    binding = task.binding
    by_column = lines_are_columns(binding, module)
    w, g = (oriented(binding, module, t.detach()).double() for t in (weight, gradient))
    each = torch.einsum("nto,nti->noi", out.double(), x.double())
    close(g, each.sum(0), 1e-5)

    def lines(elements: torch.Tensor) -> torch.Tensor:
        return elements.sum(0 if by_column else 1)

    flat = x.flatten(0, 1).double()
    found = seen["weight-gradient"]
    close(found.signed, lines(g * w), tolerance)
    close(found.absolute, lines((g * w).abs()), tolerance)
    close(found.product, lines((g * w).abs() * flat.norm(dim=0)), tolerance)
    close(found.average, lines((g * w * flat.mean(0)).abs()), tolerance)
    each = each / (TOKENS - 1)
    fisher = each.square().mean(0)
    found = seen["weight-fisher"]
    close(found.second, lines(w.square() * fisher), tolerance)
    close(found.mixed, lines((each.mean(0) * w - w.square() * fisher / 2).abs()), tolerance)
    close(found.l1, lines(w.abs() * each.abs().sum(0)), tolerance)
    close(found.l2, lines(w.abs() * each.square().sum(0).sqrt()), tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_float64(name: str, tmp_path: Path):
    model_type, overrides = VARIANTS[name]
    model = tiny_model(model_type, **overrides)
    with NoFloat32():
        task = estimated(model, tmp_path / "run", torch.float64)
        check(task, model, 1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_float32(name: str, tmp_path: Path):
    model_type, overrides = VARIANTS[name]
    model = tiny_model(model_type, dtype=torch.float32, **overrides)
    task = estimated(model, tmp_path / "run", torch.float32)
    check(task, model, 1e-5)


@pytest.mark.parametrize(
    "options", [{"spill": True}, {"tokens": TOKENS}, {"tokens": 100 * TOKENS}, {"spill": True, "tokens": 3 * TOKENS}]
)
@pytest.mark.parametrize("name", ["llama-tied", "gemma3_text", "bloom"])
def test_spilled_and_in_any_micro_batches(name: str, options: dict, tmp_path: Path):
    model_type, overrides = VARIANTS[name]
    model = tiny_model(model_type, **overrides)
    with NoFloat32():
        task = estimated(model, tmp_path / "run", torch.float64, **options)
        check(task, model, 1e-9)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["layer-000.safetensors", "layer-001.safetensors"]


def test_a_token_without_embedding_takes_no_part(tmp_path: Path):
    """Zero stays zero through the layers, and a norm's slope there is 1 / sqrt(eps): its gradient would drown all others."""
    model = tiny_model("llama")
    ids = tiny_tokens(BLOCKS, TOKENS)
    model.get_input_embeddings().weight.data[ids[0, 0]] = 0
    path = "model.layers.0.mlp.down_proj"
    with NoFloat32():
        x, _, out = (t.flatten(0, 1) for t in module_gradients(model, ids, [path])[path])
        live = x.any(-1)
        assert 1 <= int((~live).sum()) < BLOCKS
        found = estimated(model, tmp_path / "run", torch.float64).store.load(0)["mlp.down_proj"]
    close(found["output-gradient-gram"].matrix, out[live].mT @ out[live], 1e-9)
    assert float(out[~live].abs().max()) > 30 * float(out[live].abs().max())


@pytest.mark.parametrize("spill", [False, True])
@pytest.mark.parametrize("steps", [2, 4, 5, 7])
def test_a_run_that_was_cut_off_goes_on_and_finds_the_same_bit_for_bit(steps: int, spill: bool, tmp_path: Path):
    model = tiny_model("llama", dtype=torch.float32, num_hidden_layers=4)
    source = ModuleSource.of(model)
    request = gradient_request(source.binding, source.binding.prunable, KINDS)

    def task(name: str, **options) -> Task:
        (tmp_path / name).mkdir(exist_ok=True)
        walk = Walk.over(source, device=torch.device("cpu"), dtype=torch.float32, tokens=2 * TOKENS)
        return Task(
            walk=walk, ids=tiny_tokens(BLOCKS, TOKENS), axes=source.binding.prunable, request=request,
            store=Store(directory=tmp_path / name), spill=spill, **options,
        )  # fmt: skip

    whole, cut = task("whole"), task("cut")
    assert [*Backprop().estimate(whole)] == [0, 1, 2, 3, 3, 2, 1, 0]
    walking = Backprop().estimate(cut)
    for _ in range(steps):
        next(walking)
    walking.close()
    finished = max(steps - 4, 0)
    rest = [*Backprop().estimate(task("cut", resume=True))]
    # Forward to the boundary before the layer it goes on with, which needs one layer less, and back from there.
    assert rest == [*range(4 - finished - bool(finished)), *reversed(range(4 - finished))]
    for layer in range(4):
        expected, got = (TensorFile.open(t.store.path(layer)) for t in (whole, cut))
        assert expected.entries.keys() == got.entries.keys()
        assert all(torch.equal(expected.read(key), got.read(key)) for key in expected.entries)
    assert [*Backprop().estimate(task("cut", resume=True))] == []


def test_a_run_that_fails_within_a_layer_leaves_no_file_of_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: SampleGradients) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(SampleGradients, "result", fail)
    with pytest.raises(OSError, match="no space left"):
        estimated(tiny_model("llama"), tmp_path / "run", torch.float64, spill=True)
    left = {p.name for p in (tmp_path / "run").iterdir()}
    assert "gradient-002.safetensors" in left  # it goes on from there
    assert not [name for name in left if "proj" in name]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_forecast_counts_what_is_kept_of_samples(name: str):
    model_type, overrides = VARIANTS[name]
    binding = ModuleSource.of(tiny_model(model_type, **overrides)).binding
    states = {
        kind: Backprop().states(binding, gradient_request(binding, binding.prunable, {kind}))
        for kind in ("gate-gradient", "weight-gradient", "weight-fisher")
    }
    assert states["gate-gradient"] == states["weight-gradient"] == binding.num_layers + 2
    matrices = [s for s in binding.layer.values() if len(s.dims) == 2 and any(s.mentions(axis) for axis in binding.prunable)]
    widths = sum(sum(axes.shape(s, binding.sizes)) for s in matrices)
    extra = (states["weight-fisher"] - states["gate-gradient"]) * binding.sizes["hidden"]
    assert widths <= extra < widths + binding.sizes["hidden"]


def test_a_gradient_that_overflows_names_the_layer(tmp_path: Path):
    model = tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layer 1.*down_proj.*NaN"):
        estimated(model, tmp_path / "run", torch.float32)
    model = tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[:] = float("inf")
    with pytest.raises(UserError, match=r"lm_head.*NaN or infinity"):
        estimated(model, tmp_path / "head", torch.float32)
