import torch

from secateur.gradients.random import Random


def test_random_slopes_are_normal_numbers_of_the_seed():
    first, again, other = (Random(n=20).slopes(50, seed) for seed in (0, 0, 1))
    assert first.shape == (50, 20)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.mean())) < 0.1
    assert abs(float(first.var()) - 1) < 0.15
