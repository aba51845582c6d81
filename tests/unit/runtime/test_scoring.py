"""Fusion, scores and choices, against the formulas written out."""

import pytest
import torch

from secateur import ProbePruning
from secateur.runtime.history import History
from secateur.runtime.scoring import TINY, Reading, best, fused, probe_square, scores

OUT, UNITS, WIDTH = 11, 6, 4


def weight() -> torch.Tensor:
    return torch.randn(OUT, UNITS * WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["ppsp", "wanda-sp", "flap"])
def test_scores_are_the_formulas(metric):
    w, c = weight(), torch.rand(UNITS * WIDTH, dtype=torch.float64)
    parts = w.T.reshape(UNITS, WIDTH, OUT)
    cs = c.view(UNITS, WIDTH, 1)
    expected = {
        "ppsp": (cs * parts.square()).flatten(1).norm(dim=1),
        "wanda-sp": (parts.abs() * cs.sqrt()).flatten(1).sum(1),
        "flap": (cs * parts.square()).flatten(1).sum(1),
    }[metric]
    reading = Reading.of(w.T.contiguous(), metric, UNITS)
    torch.testing.assert_close(scores(c, reading, metric), expected, rtol=1e-6, atol=1e-9)


def test_scaled_fusion_is_the_mean_of_squares_over_the_sum():
    p, v = torch.rand(5, 7), torch.rand(5, 7)
    history = History(square=v, mean=torch.zeros_like(v), count=torch.ones(5, dtype=torch.float64))
    how = ProbePruning(history="position")
    found = fused(p, torch.arange(5), history, how, None)
    torch.testing.assert_close(found, ((p.square() + v.square()) / (p + v)).sum(0), rtol=1e-4, atol=1e-5)
    same = History(square=p, mean=torch.zeros_like(p), count=history.count)
    torch.testing.assert_close(fused(p, torch.arange(5), same, how, None), p.sum(0), rtol=10 * TINY, atol=10 * TINY)


def test_a_fixed_share():
    p, v = torch.rand(5, 7), torch.rand(5, 7)
    history = History(square=v, mean=torch.zeros_like(v), count=torch.ones(5, dtype=torch.float64))
    found = fused(p, torch.arange(5), history, ProbePruning(history="position", fusion=0.25), None)
    torch.testing.assert_close(found, (0.25 * p + 0.75 * v).sum(0))


def test_without_positions_the_probe_is_averaged_over_what_was_no_padding():
    p = torch.tensor([[2.0], [4.0], [0.0]])
    valid = torch.tensor([[True, True, False]])
    history = History.empty(1, None, torch.device("cpu"))
    assert float(fused(p, torch.arange(3), history, ProbePruning(fusion=1.0), valid)) == 3.0


def test_padding_is_no_part_of_a_probe():
    x = torch.tensor([[[1.0], [float("nan")]], [[3.0], [2.0]]])
    valid = torch.tensor([[True, False], [True, True]])
    assert probe_square(x, valid).flatten().tolist() == [5.0, 4.0]


def test_the_best_of_each_group():
    score = torch.tensor([3.0, 1, 2, 9, 7, 8])
    assert best(score, 3).tolist() == [3, 4, 5]
    assert best(score, 2, groups=2).tolist() == [0, 2, 3, 5]
