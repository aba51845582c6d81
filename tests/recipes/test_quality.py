"""What compensation and effort are worth on real trained models, in the mean of three calibration draws."""

from pathlib import Path
from statistics import mean

import pytest

import secateur

pytestmark = pytest.mark.slow
HOW = ("none", "bias", "least-squares")


def perplexities(base: Path, model: Path, calibration: Path, evaluation: Path, **options) -> dict[str, float]:
    """Mean over three draws of the perplexity after pruning, for each compensation."""
    found: dict[str, list[float]] = {how: [] for how in HOW}
    for seed in range(3):
        for how in HOW:
            result = secateur.prune(
                model, out=base / "out", method="flap", compensate=how, seed=seed, calibration=str(calibration),
                evaluation=str(evaluation), force=True, **options,
            )  # fmt: skip
            assert result.perplexity_after is not None
            found[how].append(result.perplexity_after)
    return {how: mean(values) for how, values in found.items()}


def halves(stories: Path, base: Path) -> tuple[Path, Path]:
    body = stories.read_text()
    middle = body.index("\n", len(body) // 2) + 1
    first, second = base / "first.txt", base / "second.txt"
    first.write_text(body[:middle])
    second.write_text(body[middle:])
    return first, second


@pytest.mark.parametrize("name", ["stories260K", "babyllama"])
def test_every_effort_is_worth_it_and_the_best_loses_far_less_than_the_best_peer(name: str, shared, tmp_path: Path):
    first, second = halves(shared("data/tinystories/stories.txt"), tmp_path)

    def lost(**chosen: str) -> float:
        results = [
            secateur.prune(
                shared(f"models/{name}"), out=tmp_path / "out", ratio=0.4, seed=seed, calibration=str(first),
                evaluation=str(second), force=True, **chosen,  # type: ignore[arg-type]
            )
            for seed in range(3)
        ]  # fmt: skip
        return mean((r.perplexity_after or 0) - (r.perplexity_before or 0) for r in results)

    fast, balanced, best = (lost(effort=effort) for effort in ("fast", "balanced", "best"))
    peer = min(lost(method=method) for method in ("flap-paper", "flap-uniform-paper"))
    assert best < balanced < fast < peer
    assert best <= 0.65 * peer


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("name", ["stories260K", "babyllama"])
def test_least_squares_beats_bias_beats_nothing_on_stories(name: str, allocation: str, ratio: float, shared, tmp_path: Path):
    first, second = halves(shared("data/tinystories/stories.txt"), tmp_path)
    found = perplexities(tmp_path, shared(f"models/{name}"), first, second, ratio=ratio, allocation=allocation)
    assert found["least-squares"] < found["bias"] < found["none"]
    if allocation == "global" and ratio == 0.4:
        assert found["least-squares"] <= 0.75 * found["bias"]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_least_squares_is_best_on_wikitext(allocation: str, ratio: float, shared, tmp_path: Path):
    calibration = tmp_path / "train.txt"  # a tenth of the text: most of the time went into tokens that no draw took
    calibration.write_text(shared("data/wikitext2/joined/train.txt").read_text()[:1_000_000])
    evaluation = shared("data/wikitext2/joined/valid.txt")
    found = perplexities(tmp_path, shared("models/wiki-llama-4m"), calibration, evaluation, ratio=ratio, allocation=allocation)
    assert found["least-squares"] < min(found["bias"], found["none"])
