"""Contract of the sampled estimators: every family, reproducible from the seed, resumed bit for bit, and right where it can be told."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from secateur.criteria.unit import CoupledGroup
from secateur.criteria.wanda_all import WandaAll
from secateur.gradients import ESTIMATORS, branches, forward_mode
from secateur.gradients.directions import Gaussian
from secateur.gradients.estimator import KINDS, Estimator, Task, gradient_request, oriented
from secateur.gradients.sampling import coupled_modules, load_slopes
from secateur.gradients.weight_space import reduce_layers
from secateur.statistics.moments import Moments
from secateur.streaming.collect import Request, Store, by_type
from secateur.streaming.module import ModuleSource
from secateur.streaming.source import read_layer
from secateur.streaming.walk import Walk
from tests.contract.tiny import MODEL_TYPES, tiny_model, tiny_tokens
from tests.reference.autograd import NoFloat32, whole_gradients

BLOCKS, TOKENS = 3, 8
SAMPLED = ("spsa-weights:n=2", "spsa-gates:n=2", "forward-mode:n=2", "random:n=2", "constant")
# BLOOM's MLP is four times as wide as its hidden state; 128 directions are to be enough for the gates of any model.
SMALL = {"bloom": {"hidden_size": 8, "n_head": 4}}


def small_model(model_type: str, **options) -> torch.nn.Module:
    return tiny_model(model_type, **options, **SMALL.get(model_type, {}))


def task_for(model: torch.nn.Module, directory: Path, *, estimator: str, tokens: int = 2 * TOKENS, **options) -> Task:
    source = ModuleSource.of(model)
    binding = source.binding
    pruned = options.pop("pruned", binding.prunable)
    dtype = options.pop("dtype", source.dtype(binding.embedding))
    walk = Walk.over(source, device=torch.device("cpu"), dtype=dtype, tokens=tokens)
    request = gradient_request(binding, pruned, ESTIMATORS.spelled(estimator).kinds)
    directory.mkdir(exist_ok=True, parents=True)
    return Task(
        walk=walk, ids=options.pop("ids", tiny_tokens(BLOCKS, TOKENS)), axes=pruned, request=request,
        store=Store(directory=directory), **{"seed": 1, **options},
    )  # fmt: skip


def estimated(model: torch.nn.Module, directory: Path, estimator: str, **options) -> Task:
    """A task that has been carried out."""
    task = task_for(model, directory, estimator=estimator, **options)
    with NoFloat32() if task.walk.dtype == torch.float64 else nullcontext():
        assert [*ESTIMATORS.spelled(estimator).estimate(task)] == ([0, 1, 1, 0] if estimator == "backprop" else [0, 1, 0, 1])
    return task


def stored(task: Task) -> dict[str, torch.Tensor]:
    """Every tensor that was asked for, of all layers."""
    return {
        f"{layer}:{place}:{kind}:{name}": x
        for layer in range(task.binding.num_layers)
        for place, kinds in task.store.load(layer, kinds=KINDS).items()
        for kind, value in kinds.items()
        for name, x in value.to_tensors().items()
    }


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value."""
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_every_registered_estimator_is_one(name: str):
    estimator = ESTIMATORS.create(name)
    assert isinstance(estimator, Estimator)
    assert estimator.name == name
    assert estimator.kinds <= KINDS
    assert ("output-gradient-gram" in estimator.kinds) == (name == "backprop")
    assert estimator.seeded == (name not in ("backprop", "constant"))


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_everything_asked_for_is_given_and_the_seed_says_it_all(model_type: str, estimator: str, tmp_path: Path):
    model = small_model(model_type)
    first = estimated(model, tmp_path / "a", estimator)
    assert first.store.finished(2, first.request) == 2
    assert all(bool(x.isfinite().all()) for x in stored(first).values() if x.is_floating_point())
    assert equal(stored(first), stored(estimated(model, tmp_path / "b", estimator)))
    seeded = ESTIMATORS.spelled(estimator).seeded
    assert equal(stored(first), stored(estimated(model, tmp_path / "c", estimator, seed=2))) != seeded
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert {n for n in left if not n.startswith("slopes")} == {"layer-000.safetensors", "layer-001.safetensors"}
    assert [*ESTIMATORS.spelled(estimator).estimate(first)] == []  # nothing is done twice


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("estimator", "tolerance"), [("spsa-gates:n=128,order=128,eps=1e-6", 1e-6), ("forward-mode:n=128,order=128", 1e-9)]
)
def test_as_many_orthogonal_directions_as_gates_give_the_exact_gate_gradients(
    model_type: str, estimator: str, tolerance: float, tmp_path: Path
):
    """OPT's ReLUs have kinks, and a step of 1e-6 seldom meets one; the rounding of so small a step is what is left."""
    model = small_model(model_type)
    options = {"ids": tiny_tokens(2, 5), "tokens": 100}
    exact, got = (estimated(model, tmp_path / e[:4], e, **options) for e in ("backprop", estimator))
    for layer in range(2):
        one, other = got.store.load(layer), exact.store.load(layer)
        for axis in exact.axes:
            gates, expected = one[axis]["gate-gradient"], other[axis]["gate-gradient"]
            assert gates.samples == expected.samples == 2
            for a, b in zip(gates[1:], expected[1:], strict=True):
                assert error(a, b) <= tolerance, (layer, axis)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_slopes_of_weights_are_the_gradient_along_directions_that_the_seed_makes_again(model_type: str, tmp_path: Path):
    model = small_model(model_type)
    task = estimated(model, tmp_path, "spsa-weights:n=2,eps=1e-6")
    expected = torch.zeros(BLOCKS, 2, dtype=torch.float64)
    z = Gaussian(seed=1)
    with NoFloat32():
        for sample in range(BLOCKS):
            with whole_gradients(model, task.ids[sample : sample + 1]):
                for layer in range(2):
                    for module in coupled_modules(task.binding, task.axes):
                        path = f"{task.binding.family.layers}.{layer}.{module}"
                        g = oriented(task.binding, module, model.get_submodule(path).weight.grad)
                        for query in range(2):
                            expected[sample, query] += (z(query, layer, module, slice(0, len(g)), g.shape[1]) * g).sum()
    assert error(load_slopes(task), expected) <= 1e-5


def fms_scores(task: Task, layer: int, axis: str) -> torch.Tensor:
    """The sum of the product form over everything a unit is made of."""
    group = group_of(task, layer, axis)
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for matrix in group.matrices:
        total += group.add_up(task.store.load(layer)[matrix.module]["weight-gradient"].product, group.units_along(matrix))
    return total


def group_of(task: Task, layer: int, axis: str) -> CoupledGroup:
    binding = task.binding
    return CoupledGroup.of(
        layer=layer, axis=axis, sizes=binding.sizes, specs=binding.layer, weights=read_layer(task.walk.source, layer)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "phi3"])
def test_with_a_constant_gradient_feature_map_sensitivity_is_wanda_over_all_matrices(model_type, dtype, tmp_path: Path):
    task = estimated(small_model(model_type, dtype=dtype), tmp_path, "constant")
    for layer in range(2):
        seen = by_type(task.store.load(layer))
        assert all(Moments in kinds for place, kinds in seen.items() if place not in task.axes)
        for axis in task.axes:
            assert torch.equal(fms_scores(task, layer, axis), WandaAll().score(group_of(task, layer, axis), seen))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_has_no_say_in_what_one_query_keeps(dtype: torch.dtype, tmp_path: Path):
    """Controls C1 and C2: with n = 1 any number in place of the slope keeps the same units."""
    model = small_model("llama", dtype=dtype)
    real = estimated(model, tmp_path / "real", "spsa-weights")
    shutil.copytree(tmp_path / "real", tmp_path / "one")
    one = task_for(model, tmp_path / "one", estimator="spsa-weights")
    assert [*reduce_layers(one, torch.ones(BLOCKS, 1, dtype=torch.float64), Gaussian(seed=1))] == [0, 1]
    random = estimated(model, tmp_path / "random", "random")
    other = estimated(model, tmp_path / "other", "spsa-weights", seed=5)
    for layer in range(2):
        for axis in real.axes:
            orders = [fms_scores(t, layer, axis).argsort().tolist() for t in (real, one, random, other)]
            assert orders[0] == orders[1] == orders[2]
            assert axis != "ffn" or orders[3] != orders[0]
    assert not equal(stored(real), stored(one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "bloom", "opt"])
def test_weights_stay_as_they_are_bit_for_bit(model_type: str, estimator: str, dtype: torch.dtype, tmp_path: Path):
    model = small_model(model_type, dtype=dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task = estimated(model, tmp_path, estimator)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert task.store.finished(2, task.request) == 2


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("spill", [False, True])
def test_an_interrupted_estimation_goes_on_to_the_same_result(estimator: str, stop: int, spill: bool, tmp_path: Path):
    model = small_model("llama")
    whole = stored(estimated(model, tmp_path / "whole", estimator, spill=spill))
    task = task_for(model, tmp_path / "parts", estimator=estimator, spill=spill, resume=True)
    with NoFloat32():
        walk = ESTIMATORS.spelled(estimator).estimate(task)
        begun = [next(walk) for _ in range(stop)]
        walk.close()
        rest = [*ESTIMATORS.spelled(estimator).estimate(task)]
    # A generator that is closed when it yields has not begun what comes after: the layer just yielded is kept.
    assert begun + rest == [0, 1, 0, 1]
    assert equal(whole, stored(task))


def test_an_interrupted_estimation_begins_anew_where_it_is_not_resumed_or_what_it_left_is_damaged(tmp_path: Path):
    model = small_model("llama")
    whole = stored(estimated(model, tmp_path / "whole", "spsa-gates:n=2"))
    for resume in (False, True):
        task = task_for(model, tmp_path / f"{resume}", estimator="spsa-gates", resume=resume)
        with NoFloat32():
            walk = ESTIMATORS.spelled("spsa-gates:n=2").estimate(task)
            next(walk)
            walk.close()
            (left,) = task.store.directory.glob("hidden-*")
            if resume:
                left.write_bytes(left.read_bytes()[:-9])
            assert [*ESTIMATORS.spelled("spsa-gates:n=2").estimate(task)] == [0, 1, 0, 1]
        assert equal(whole, stored(task))


@pytest.mark.parametrize("estimator", ["spsa-weights:n=2", "spsa-gates:n=2", "forward-mode:n=2"])
@pytest.mark.parametrize(("stop", "resume"), [(1, True), (2, True), (3, False)])
def test_what_is_left_of_other_axes_is_not_gone_on_with(estimator: str, stop: int, resume: bool, tmp_path: Path):
    """Directions are of the axes that are asked for, and so are the hidden states and the slopes."""
    model = small_model("llama")
    fresh = stored(estimated(model, tmp_path / "fresh", estimator, pruned=("group",)))
    others = task_for(model, tmp_path / "used", estimator=estimator)
    with NoFloat32():
        walk = ESTIMATORS.spelled(estimator).estimate(others)
        assert [next(walk) for _ in range(stop)]
        walk.close()
    used = stored(estimated(model, tmp_path / "used", estimator, pruned=("group",), resume=resume))
    assert equal(fresh, {key: used[key] for key in fresh})


@pytest.mark.parametrize("estimator", SAMPLED)
def test_a_layer_that_was_lost_is_made_again(estimator: str, tmp_path: Path):
    model = small_model("llama")
    task = estimated(model, tmp_path, estimator)
    whole = stored(task)
    task.store.path(1).write_bytes(b"damaged")
    assert equal(whole, stored(estimated(model, tmp_path, estimator)))


def test_another_request_of_the_same_axes_measures_no_more(tmp_path: Path):
    model = small_model("llama")
    whole = stored(estimated(model, tmp_path / "whole", "spsa-weights"))
    task = task_for(model, tmp_path / "parts", estimator="spsa-weights")
    gates = Request(kinds={axis: frozenset({"gate-gradient"}) for axis in task.axes})
    with NoFloat32():
        assert [*ESTIMATORS.create("spsa-weights").estimate(replace(task, request=gates))] == [0, 1, 0, 1]
        assert [*ESTIMATORS.create("spsa-weights").estimate(task)] == [0, 1]
    assert equal(whole, stored(task))


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("options", [{"tokens": TOKENS}, {"tokens": 100 * TOKENS}, {"spill": True}])
def test_micro_batches_and_spilling_change_nothing(estimator: str, options: dict, tmp_path: Path):
    model = small_model("qwen2")
    one, other = (stored(estimated(model, tmp_path / n, estimator, **o)) for n, o in (("a", {}), ("b", options)))
    assert all(error(one[k], other[k]) <= 1e-6 for k in one if one[k].any())  # differences of losses lose digits


@pytest.mark.parametrize("estimator", SAMPLED)
def test_layers_are_read_once_in_a_pass_and_passes_are_as_many_as_it_says(estimator: str, tmp_path: Path, monkeypatch):
    reads, blocks, derivatives = [], [], []
    read, run, derive = ModuleSource.read, branches.run_layer, forward_mode.derivative

    def counted(function, count):
        return lambda *args, **kwargs: (count.append(args), function(*args, **kwargs))[1]

    monkeypatch.setattr(ModuleSource, "read", counted(read, reads))
    monkeypatch.setattr(branches, "run_layer", counted(run, blocks))
    monkeypatch.setattr("secateur.streaming.walk.run_layer", counted(run, blocks))
    monkeypatch.setattr(forward_mode, "derivative", counted(derive, derivatives))
    task = estimated(small_model("llama"), tmp_path, estimator)
    names = [args[1] for args in reads]
    down = f"{task.binding.family.layers}.1.mlp.down_proj.weight"
    assert names.count(down) == 2  # the pass over the branches, and the reduction
    forwards = sum(len(args[3]) for args in blocks)
    through_layers = [args for args in derivatives if len(args[1]) == 2]
    forwards += sum(len(args[1][0]) for args in through_layers)  # each counts as two, and calls a layer once
    assert ESTIMATORS.spelled(estimator).passes() == (forwards / (2 * BLOCKS), 0)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "phi"])
def test_fused_attention_gives_the_same_derivatives(model_type: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(forward_mode, "_by_two_backwards", None)  # not needed by these
    eager, fused = (
        stored(estimated(small_model(model_type, attention=kind), tmp_path / kind, "forward-mode:n=2"))
        for kind in ("eager", "sdpa")
    )
    assert all(error(fused[k], eager[k]) <= 1e-9 for k in eager if eager[k].any())
