"""The peers as recipes: what they are made of, and that they land where the peers' own code did on a real trained model."""

from pathlib import Path

import pytest
import torch

import secateur
from secateur.calibration.blocks import Blocks
from secateur.calibration.tokens import Tokens, tokenise
from secateur.recipes.presets import RECIPES, resolved
from secateur.settings import PruneSettings
from tests.recipes.test_gradients import pruned

RATIOS = (0.2, 0.4, 0.5)
DENSE = 45.59
FIGURES = {  # of their own code: 128 x 128 tokens of the first half of WikiText-2 train, 128 x 128 of valid, no BOS
    ("flap-paper", None): (47.6, 70.5, 79.3),
    ("flap-uniform-paper", None): (48.5, 56.8, 69.3),
    ("wanda-sp-paper", None): (49.0, 58.5, 72.1),
    ("llm-pruner", None): (48.6, 58.7, 71.5),
    ("llm-pruner", "0,-1"): (48.0, 58.6, 68.6),
}
TOLERANCE = 0.03
MADE_OF = {  # method: (criterion, compensation, allocation, gradient, protected layers of 32)
    "flap-paper": ("flap", "bias", "global", None, ""),
    "flap-uniform-paper": ("flap", "bias", "uniform-floor", None, ""),
    "wanda-sp-paper": ("wanda-sp", "none", "uniform-floor", None, ""),
    "ppsp-paper": ("ppsp", "none", "uniform-floor", None, "0,1,2"),
    "magnitude-paper": ("magnitude", "none", "uniform-floor", None, ""),
    "llm-pruner": ("taylor", "none", "uniform-floor", "backprop", "0,1,2,3,-2,-1"),
}


def drawn(tokens: Tokens, *, samples: int, seq_len: int, seed: int) -> Blocks:
    """Windows that may overlap, from anywhere in the first half."""
    first = tokens.ids[: len(tokens.ids) // 2]
    at = torch.randint(len(first) - seq_len, (samples,), generator=torch.Generator().manual_seed(seed))
    ids = torch.stack([first[i : i + seq_len] for i in at.tolist()])
    return Blocks(ids=ids, text=tokens.name, protocol="random windows of the first half", fingerprint="peers")


@pytest.mark.slow
def test_each_peer_lands_within_3_percent_of_its_own_code(shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known: dict[object, Tokens] = {}

    def once(text, tokenizer, *, max_tokens=None):
        key = text.name, max_tokens
        if key not in known:
            known[key] = tokenise(text, tokenizer, max_tokens=max_tokens)
        return known[key]

    monkeypatch.setattr("secateur.recipes.texts.tokenise", once)
    monkeypatch.setattr("secateur.recipes.texts.draw_blocks", drawn)
    monkeypatch.setattr("secateur.recipes.texts.EVALUATED", 128 * 128)
    found, dense = {}, set()
    for method, protect in FIGURES:
        for ratio in RATIOS:
            result = secateur.prune(
                shared("models/wiki-llama-4m"), out=tmp_path / "out", force=True, method=method, protect=protect, ratio=ratio,
                calibration=str(shared("data/wikitext2/joined/train.txt")), samples=128, seq_len=128, seed=0, dtype="fp32",
                evaluation=str(shared("data/wikitext2/joined/valid.txt")),
            )  # fmt: skip
            assert abs(result.ratio_reached - ratio) < 0.003
            found[method, protect, ratio] = result.perplexity_after
            dense.add(result.perplexity_before)
    assert list(dense) == [pytest.approx(DENSE, rel=0.01)]
    given = {(*who, ratio): figure for who, all_ in FIGURES.items() for ratio, figure in zip(RATIOS, all_, strict=True)}
    off = {key: found[key] / figure - 1 for key, figure in given.items()}
    print("\n".join(f"{' '.join(map(str, key))}: {found[key]:.2f}, given {given[key]}, {off[key]:+.1%}" for key in given))
    assert {key: share for key, share in off.items() if abs(share) > TOLERANCE} == {}


@pytest.mark.parametrize("method", sorted(MADE_OF))
def test_peers_are_made_of_their_published_choices(method: str, tmp_path: Path):
    criterion, compensate, allocation, gradient, protect = MADE_OF[method]
    settings = resolved(PruneSettings(model="m", out=tmp_path, ratio=0.2, method=method), num_layers=32)
    assert RECIPES[method].method == criterion
    chosen = settings.compensate, settings.allocation, settings.gradient, settings.protect
    assert chosen == (compensate, allocation, gradient, protect)
    shallow = resolved(PruneSettings(model="m", out=tmp_path, ratio=0.2, method=method), num_layers=8)
    assert shallow.protect == ""


@pytest.mark.parametrize("method", sorted(MADE_OF))
def test_peers_run_and_their_choices_can_be_overridden(method: str, tmp_path: Path, checkpoint):
    checkpoint("llama")
    _, compensate, allocation, gradient, _ = MADE_OF[method]
    result = pruned(tmp_path, method=method)
    assert (result.method, result.compensate, result.allocation) == (method, compensate, allocation)
    assert (result.gradient["estimator"] if result.gradient else None) == ("Backprop()" if gradient else None)
    other = pruned(tmp_path, method=method, compensate="least-squares", allocation="uniform", out="other")
    assert (other.method, other.compensate, other.allocation) == (method, "least-squares", "uniform")
