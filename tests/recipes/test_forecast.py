"""What a forecast counts: the work of scoring, and the memory of refitting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.criteria.obs import Obs
from secateur.families.binding import bind
from secateur.recipes.forecast import Forecast
from secateur.recipes.job import prepare
from secateur.recipes.scoring import scoring_flops
from secateur.settings import PruneSettings
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.memory import Fit, fit
from secateur.surgery.refit import layer_weights, working_bytes
from tests.contract.tiny import FFN, HIDDEN, tiny_config
from tests.recipes.refusal import job, refused, statistics

Make = Callable[..., Path]
WIDE = 6000
MIB = 1 << 20


@pytest.fixture
def wide(checkpoint: Make) -> Path:
    return checkpoint("llama", intermediate_size=WIDE)


def foretold(model: Path, **options: object) -> Forecast:
    return secateur.prune(model, **job(model, compensate="none", **options), dry_run=True)


def test_eliminating_takes_the_memory_of_its_matrices(wide: Path) -> None:
    plain, eliminating = (foretold(wide, method=method).peak_memory_bytes for method in ("flap", "obs"))
    stated = Obs().scoring_bytes(WIDE, HIDDEN)
    assert stated == 20 * WIDE**2, "the Gram matrix in float32, and two more in float64"
    assert eliminating - plain == pytest.approx(stated, rel=0.2)


def test_less_memory_than_scoring_takes_is_refused_before_any_work(wide: Path) -> None:
    peak, plain = (foretold(wide, method=method).peak_memory_bytes for method in ("obs", "flap"))
    limit = f"{peak - 100 * MIB}"
    assert peak - 100 * MIB > plain + 100 * MIB
    for more in ({"dry_run": True}, {}):
        message = refused(wide, **job(wide, method="obs", compensate="none"), max_memory=limit, **more)
        assert "and scoring by obs needs about" in message and "Give more, fewer --axes, or a --method" in message
    assert statistics(wide.parent) == []
    assert foretold(wide, method="obs", max_memory=f"{peak + 200 * MIB}").walks == 1


def test_eliminating_takes_time_by_the_cube_of_the_columns(checkpoint: Make, wide: Path) -> None:
    assert foretold(wide, method="obs").seconds > foretold(wide, method="flap").seconds + 3

    def flops(method: str, **options: object) -> float:
        settings = job(wide, method=method, **options)
        return scoring_flops(prepare(PruneSettings(model=str(wide), **settings)))

    each = Obs().scoring_flops(WIDE, HIDDEN)
    assert each == pytest.approx(7 * WIDE**3, rel=0.02)
    assert flops("obs", axes="ffn") == 2 * each, "a reader in each of two layers"
    assert flops("obs", axes="ffn", protect="0", ratio=0.1) == each
    assert flops("obs", axes="kv,ffn") == 2 * (each + Obs().scoring_flops(HIDDEN, HIDDEN))
    assert flops("sensitivity", axes="ffn") > 2 * each, "F is between"
    assert flops("flap") == 0


def test_matrices_that_read_one_input_are_refitted_in_one_regression(checkpoint: Make) -> None:
    source, binding = Checkpoint.open(checkpoint("llama")), bind(tiny_config("llama"))
    together = HIDDEN + HIDDEN  # q, k and v: k and v of half as many heads; gate and up are less
    assert together > 2 * FFN
    expected = 16 * HIDDEN**2 + 24 * HIDDEN * together + layer_weights(binding, source, binding.sizes)
    assert working_bytes(binding, source, binding.sizes) == expected


def test_refitting_is_counted_with_whole_layers_where_they_may_stay(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = checkpoint("llama"), list[int]()

    def watched(*rest: Any, statistics: int, **options: Any) -> Fit:
        seen.append(statistics)
        return fit(*rest, statistics=statistics, **options)

    monkeypatch.setattr("secateur.recipes.job.fit", watched)

    def peak(**options: object) -> int:
        settings = job(model, compensate="sequential", **options)
        assert prepare(PruneSettings(model=str(model), **settings)).fit_refit.peak > 0
        return seen.pop()

    source = Checkpoint.open(model)
    dense = working_bytes(source.binding, source, source.binding.sizes)
    assert peak(allocation="uniform") < dense
    assert peak(allocation="global") == peak(allocation="uniform", protect="0") == dense
