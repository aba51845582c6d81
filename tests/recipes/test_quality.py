"""What compensation is worth on real trained models: the order of the three, in the mean of three calibration draws."""

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
                model, out=base / "out", compensate=how, seed=seed, calibration=str(calibration), evaluation=str(evaluation),
                force=True, **options,
            )  # fmt: skip
            assert result.perplexity_after is not None
            found[how].append(result.perplexity_after)
    return {how: mean(values) for how, values in found.items()}


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("name", ["stories260K", "babyllama"])
def test_least_squares_beats_bias_beats_nothing_on_stories(name: str, allocation: str, ratio: float, shared, tmp_path: Path):
    body = shared("data/tinystories/stories.txt").read_text()
    middle = body.index("\n", len(body) // 2) + 1
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(body[:middle])
    second.write_text(body[middle:])
    found = perplexities(tmp_path, shared(f"models/{name}"), first, second, ratio=ratio, allocation=allocation)
    assert found["least-squares"] < found["bias"] < found["none"]
    if allocation == "global" and ratio == 0.4:
        assert found["least-squares"] <= 0.75 * found["bias"]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_least_squares_is_best_on_wikitext(allocation: str, ratio: float, shared, tmp_path: Path):
    texts = shared("data/wikitext2/joined/train.txt"), shared("data/wikitext2/joined/valid.txt")
    found = perplexities(tmp_path, shared("models/wiki-llama-4m"), *texts, ratio=ratio, allocation=allocation)
    assert found["least-squares"] < min(found["bias"], found["none"])
