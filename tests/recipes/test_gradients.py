"""Methods that need a gradient, through the public API: which estimator runs, what is refused, and what a killed run keeps."""

import json
from pathlib import Path

import pytest

import secateur
from secateur.errors import UserError
from secateur.gradients import ESTIMATORS
from secateur.recipes.presets import RECIPES, resolved
from secateur.settings import PruneSettings
from tests.recipes.tiny_checkpoint import TINY, text_beside, tiny_checkpoint

METHODS = ("fms", "taylor", "taylor:form=mixed", "gate-taylor", "gate-fisher", "gblm", "sensitivity")


def pruned(base: Path, model_type: str = "llama", out: str = "out", **options):
    model = base / "model"
    if not model.is_dir():
        tiny_checkpoint(model_type, base)
    return secateur.prune(model, out=base / out, **{"ratio": 0.3, "calibration": str(text_beside(model)), **TINY, **options})


def kept(result) -> list:
    return json.loads((Path(result.out) / "secateur.json").read_text())["plan"]["layers"]


@pytest.mark.parametrize("method", METHODS)
def test_exact_gradients_are_the_default(method: str, tmp_path: Path):
    result = pruned(tmp_path, method=method)
    assert result.gradient is not None
    assert result.gradient["estimator"] == "Backprop()"
    assert (result.gradient["forward_passes"], result.gradient["backward_passes"]) == (2, 1)
    assert result.gradient["peak_memory_bytes"] > 1e8
    again = pruned(tmp_path, method=method, out="again", ratio=0.4)
    assert again.gradient == result.gradient
    assert kept(again) != kept(result)


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS.names()))
def test_methods_and_estimators_and_compensation_and_allocation_combine(estimator: str, tmp_path: Path):
    for number, (compensate, allocation) in enumerate([("none", "uniform"), ("least-squares", "global")]):
        result = pruned(
            tmp_path, out=str(number), method="fms", gradient=estimator, compensate=compensate, allocation=allocation, dtype="fp32"
        )  # fmt: skip
        assert result.gradient is not None
        assert result.gradient["forward_passes"] >= 1
        assert result.verified <= 1e-5


def test_the_paper_s_recipe_and_what_overrides_it(tmp_path: Path):
    result = pruned(tmp_path, method="mini-llm")
    assert (result.method, result.compensate, result.allocation) == ("mini-llm", "none", "uniform")
    assert result.gradient is not None
    assert "SpsaWeights" in result.gradient["estimator"]
    assert (result.gradient["forward_passes"], result.gradient["backward_passes"])[1] == 0
    exact = pruned(tmp_path, method="mini-llm", gradient="backprop", compensate="least-squares", out="exact")
    assert exact.compensate == "least-squares"
    assert exact.gradient is not None
    assert exact.gradient["estimator"] == "Backprop()"


def test_deep_models_keep_their_ends(tmp_path: Path):
    settings = PruneSettings(model="m", out=tmp_path, ratio=0.2, method="mini-llm")
    assert resolved(settings, 32).protect == "0,1,2,3,-2,-1"
    assert resolved(settings, 8).protect == ""
    assert resolved(settings.model_copy(update={"protect": ""}), 32).protect == ""
    assert RECIPES["mini-llm"].method == "fms"


def test_one_seed_gives_one_plan_and_another_seed_another(tmp_path: Path):
    first, second, other = (
        pruned(tmp_path, method="mini-llm", out=f"o{n}", run_dir=tmp_path / f"r{n}", seed=s) for n, s in enumerate((3, 3, 4))
    )
    assert kept(first) == kept(second)
    assert kept(first) != kept(other)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "flap", "gradient": "backprop"}, "flap uses no gradient"),
        ({"method": "fms", "gradient": "backprob"}, "unknown gradient estimator 'backprob'. Did you mean backprop"),
        ({"method": "sensitivity", "gradient": "spsa-gates"}, "Estimators that can: backprop"),
        ({"method": "fms", "gradient": "spsa-weights:n=0"}, "n=0 was given. It is the number of directions"),
        ({"method": "fms", "gradient": "spsa-weights:eps=0"}, "eps=0.0 was given. It is the length of a step"),
        ({"method": "fms", "gradient": "spsa-weights:n=many"}, "option n is 'many'. Allowed: a whole number"),
        ({"method": "fms", "gradient": "spsa-gates:order=12"}, "power of two"),
        ({"method": "taylor:form=third"}, "third"),
        ({"method": "minillm"}, "Did you mean mini-llm"),
        ({"method": "mini-llm:form=third"}, "third"),
        ({"method": "fms", "gradient": ""}, "gradient = '' is not allowed"),
        ({"method": "fms", "gradient": "spsa-gates:n=4,n=8"}, "given twice"),
    ],
)
def test_what_is_refused(options: dict, told: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        pruned(tmp_path, **options)
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_memory_limit_is_respected(tmp_path: Path):
    free = pruned(tmp_path, method="gate-taylor")
    with pytest.raises(UserError, match="--max-memory"):
        pruned(tmp_path, method="gate-taylor", max_memory="1MiB", out="little", run_dir=tmp_path / "run-little")
    limited = pruned(tmp_path, method="gate-taylor", max_memory="8GiB", out="much", run_dir=tmp_path / "run-much")
    assert kept(free) == kept(limited)
