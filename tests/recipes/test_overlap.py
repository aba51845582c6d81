"""A run that would measure a model on the text it is calibrated on refuses, before anything expensive, unless told."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from tests.recipes.refusal import job, refused, statistics
from tests.recipes.tiny_checkpoint import text_beside, tiny_text

Make = Callable[..., Path]


@pytest.fixture
def model(checkpoint: Make) -> Path:
    return checkpoint("llama")


def other(model: Path, *, shared: float) -> str:
    """Another text beside the model, that begins with a part of the calibration text."""
    text, path = text_beside(model).read_text(), model.parent / "other.txt"
    path.write_text(text[: round(shared * len(text))] + tiny_text(round(1000 * (1 - shared)), seed=1))
    return str(path)


def test_the_same_text_for_both_is_refused_and_nothing_was_walked(model: Path) -> None:
    text = text_beside(model)
    message = refused(model, **job(model, evaluation=str(text)))
    assert "(text.txt) overlaps with the calibration text (text.txt): 100.0% of its runs of 32 tokens" in message
    assert "at token 0: '<s> " in message and "--allow-overlap" in message and "--eval" in message
    os.link(text, model.parent / "copy.txt")
    assert "(copy.txt) overlaps" in refused(model, **job(model, evaluation=str(model.parent / "copy.txt")))
    assert statistics(model.parent) == []


def test_a_dry_run_looks_at_the_texts_too(model: Path) -> None:
    options = job(model, evaluation=str(text_beside(model)))
    assert "overlaps with the calibration text" in refused(model, **options, dry_run=True)
    assert "too short" in refused(model, **job(model, samples=100_000), dry_run=True)
    assert secateur.prune(model, **options, allow_overlap=True, dry_run=True).walks == 3


def test_a_text_that_holds_some_of_it_is_refused(model: Path) -> None:
    assert "overlaps" in refused(model, **job(model, evaluation=other(model, shared=0.1)))


@pytest.mark.parametrize("shared", [None, 0, 0.03], ids=["held out", "another", "a little"])
def test_texts_that_differ_are_taken_and_the_record_says_how_far(model: Path, shared: float | None) -> None:
    options: dict[str, Any] = job(model) | {"evaluation": None if shared is None else other(model, shared=shared)}
    found = secateur.prune(model, **options).overlap
    assert found is not None
    assert found["shingles"] > 800
    assert (0.01 < found["in_calibration_text_ratio"] < 0.05) if shared else found["in_calibration_text_ratio"] == 0


def test_told_to_it_measures_and_says_so(model: Path) -> None:
    options = job(model, evaluation=str(text_beside(model)))
    result = secateur.prune(model, **options, allow_overlap=True)
    assert result.overlap is not None and result.overlap["in_calibration_text_ratio"] == 1
    out = model.parent / "out"
    card = (out / "README.md").read_text()
    assert "100.00% of the runs of 32 tokens that the perplexity is of occur in the\n  calibration text: **it was" in card
    assert "--allow-overlap" in card
    record = json.loads((out / "secateur.json").read_text())
    assert record["provenance"]["result"]["overlap"] == result.overlap
    assert "allow_overlap" not in record["plan"]["settings"]


def test_nothing_is_said_of_texts_without_an_evaluation(model: Path) -> None:
    assert secateur.prune(model, **job(model)).overlap is None
    assert "runs of" not in (model.parent / "out/README.md").read_text()
    message = refused(model, **job(model), allow_overlap=True)
    assert "allow_overlap has no effect with evaluation = 'none'" in message
