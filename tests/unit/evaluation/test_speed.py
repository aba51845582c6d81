"""How rounds are counted and ended, and what is said of them, on a clock of the test's own."""

import itertools
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from secateur.evaluation import speed
from secateur.evaluation.speed import MOST, SURE, Cell, Spread, Times, compare_speed

CELL = Cell(2, 8)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Times]:
    """Times of two models whose runs take what a function says, on a clock that stands still but for these."""
    now = [0.0]

    def run(takes: Callable[[str, int], float], **options: Any) -> Times:
        counts = {name: itertools.count(-1) for name in ("base", "other")}

        def once(name: str, *_: Any) -> tuple[float, float]:
            seconds = takes(name, next(counts[name]))
            now[0] += seconds
            return seconds, 0.0

        monkeypatch.setattr(speed, "time_once", once)
        monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
        given: dict[str, Any] = {"vocab": 10, "runs": 5, "new_tokens": 0, "seed": 0, **options}
        return compare_speed({name: name for name in counts}, CELL, **given)

    return run


def test_as_many_rounds_as_asked_for_and_a_first_that_does_not_count(timed: Callable[..., Times]) -> None:
    times = timed(lambda name, run: 9.0 if run < 0 else 2.0 if name == "base" else 1.0)
    assert times.prefill == {"base": [2.0] * 5, "other": [1.0] * 5}
    assert times.speedup("prefill", "other", "base") == (2.0,) * 5 and times.sure


def test_short_runs_are_followed_by_more(timed: Callable[..., Times]) -> None:
    assert len(timed(lambda *_: 0.125, least_seconds=3.0, most_seconds=9.0).prefill["base"]) == 11, (
        "of a quarter second each, and one"
    )
    assert len(timed(lambda *_: 1e-5, least_seconds=3.0, most_seconds=9.0).prefill["base"]) == MOST * 5
    assert len(timed(lambda *_: 60.0, least_seconds=3.0, most_seconds=9.0).prefill["base"]) == 5


def test_rounds_go_on_until_the_ratio_is_known(timed: Callable[..., Times]) -> None:
    def unsteady(name: str, run: int) -> float:
        return 0.1 * (1.2 if name == "other" and run % 8 == 1 else 1)

    times = timed(unsteady, least_seconds=0.5, most_seconds=60.0)
    rounds = len(times.prefill["base"])
    assert 5 < rounds < 40, "five rounds leave it between 0.83 and 1"
    assert times.sure and times.speedup("prefill", "other", "base").median == 1.0
    draw = random.Random(0)
    unsure = timed(lambda *_: 0.1 * draw.uniform(1, 2), most_seconds=12.0)
    assert not unsure.sure and 12 / 0.4 <= len(unsure.prefill["base"]) <= 12 / 0.2, "it ends all the same"


@pytest.mark.parametrize("count", [5, 6, 11, 40, 200])
def test_the_interval_holds_the_median_of_a_skewed_distribution_in_95_of_100_cases(count: int) -> None:
    draw, held = random.Random(count), 0
    for _ in range(2000):
        spread = Spread.of([draw.lognormvariate(0, 1) for _ in range(count)])
        assert spread.least <= spread.low <= spread.median <= spread.high <= spread.most
        held += spread.low <= 1.0 <= spread.high  # the median of all
    assert held / 2000 >= (0.93 if count > 5 else 1 - 2 * 0.5**5 - 0.02)


def test_rows_hold_all_that_the_figures_were_computed_from() -> None:
    times = Times(
        cell=CELL, prefill={"base": [2.0, 3.0, 4.0], "other": [1.0, 1.0, 4.0]}, decode={"base": [1.0] * 3, "other": [2.0] * 3}
    )
    rows = {(row["phase"], row["model"]): row for row in times.rows(new_tokens=4)}
    assert set(rows) == {(phase, name) for phase in ("prefill", "decode") for name in ("base", "other")}
    base, other = rows["prefill", "base"], rows["prefill", "other"]
    paired = [a / b for a, b in zip(base["each"], other["each"], strict=True)]
    assert (other["speedup"], other["speedup_least"], other["speedup_most"]) == (
        statistics.median(paired),
        min(paired),
        max(paired),
    )
    assert (base["seconds"], base["tokens_per_second"], base["tokens_per_second_least"]) == (3.0, 16 / 3, 4.0)
    assert "speedup" not in base and rows["decode", "other"]["speedup"] == 0.5
    assert rows["decode", "other"]["tokens_per_second"] == 2 * 4 / 2.0 and SURE > 0
