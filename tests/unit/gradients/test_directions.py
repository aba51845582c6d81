import pytest
import torch

from secateur.errors import UserError
from secateur.gradients import ESTIMATORS
from secateur.gradients.directions import ROWS, Gaussian, Hadamard, Plain, generator, parity
from secateur.gradients.sampling import design_of


def test_any_rows_of_a_direction_are_made_again_alone():
    z = Gaussian(seed=3)
    whole = z(1, 2, "mlp.up_proj", slice(0, 3 * ROWS + 5), 7)
    assert whole.shape == (3 * ROWS + 5, 7)
    for start, stop in ((0, 1), (ROWS - 1, ROWS + 1), (5, 3 * ROWS + 2), (3 * ROWS, 3 * ROWS + 5)):
        assert torch.equal(z(1, 2, "mlp.up_proj", slice(start, stop), 7), whole[start:stop])


@pytest.mark.parametrize("place", [(4, 1, 2, "m"), (3, 0, 2, "m"), (3, 1, 0, "m"), (3, 1, 2, "other")])
def test_directions_differ_wherever_they_belong_elsewhere(place):
    seed, *rest = place
    rows = slice(0, ROWS)
    assert not torch.equal(Gaussian(seed=seed)(*rest, rows, 8), Gaussian(seed=3)(1, 2, "m", rows, 8))
    assert not torch.equal(Gaussian(seed=seed)(*rest, rows, 8), Gaussian(seed=seed)(*rest, slice(ROWS, 2 * ROWS), 8))


def test_directions_are_standard_normal():
    z = torch.stack([Gaussian(seed=0)(k, 0, "m", slice(0, 64), 64) for k in range(20)]).flatten()
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.var()) - 1) < 0.02
    assert abs(float(z.pow(4).mean()) - 3) < 0.1


def test_a_seed_means_the_same_numbers_for_ever():
    assert torch.rand(2, generator=generator("z", 0, "m"), dtype=torch.float64).tolist() == pytest.approx(
        [0.10239876839165263, 0.40603396609765063], abs=0
    )


def test_parity_is_that_of_the_number_of_ones():
    numbers = [0, 1, 2, 3, 7, 2**31, 2**40 + 1, 2**62 - 1, 123456789]
    assert parity(torch.tensor(numbers)).tolist() == [bin(n).count("1") % 2 for n in numbers]


@pytest.mark.parametrize(("order", "gates"), [(8, 8), (16, 11), (64, 33)])
def test_a_hadamard_design_is_orthogonal_within_each_layer(order: int, gates: int):
    for layer in range(3):
        d = Hadamard(seed=0, gates=gates, order=order)(torch.arange(order), layer)
        assert d.shape == (order, gates)
        assert torch.equal(d.mT @ d, order * torch.eye(gates))


def test_a_hadamard_design_is_orthogonal_over_all_layers_where_its_order_suffices():
    design = Hadamard(seed=0, gates=5, order=16)
    for first in (0, 16, 5):  # any `order` slots in a row
        d = torch.cat([design(torch.arange(first, first + 16), layer) for layer in range(3)], dim=1)
        assert torch.equal(d.mT @ d, 16 * torch.eye(15))
    d = torch.cat([design(torch.arange(16), layer) for layer in range(4)], dim=1)
    assert not torch.equal(d.mT @ d, 16 * torch.eye(20))  # 20 gates cannot be


@pytest.mark.parametrize("kind", [Plain, Hadamard])
def test_designs_depend_on_the_seed_and_the_layer_and_are_made_again_slot_by_slot(kind):
    options = {"order": 32} if kind is Hadamard else {}
    d = kind(seed=0, gates=40, **options)(torch.arange(32), 1)
    assert set(d.unique().tolist()) == {-1, 1}
    assert torch.equal(kind(seed=0, gates=40, **options)(torch.tensor([9, 3]), 1), d[[9, 3]])
    assert not torch.equal(kind(seed=1, gates=40, **options)(torch.arange(32), 1), d)
    assert not torch.equal(kind(seed=0, gates=40, **options)(torch.arange(32), 2), d)


@pytest.mark.parametrize(("slots", "order"), [(1, 1), (2, 2), (3, 2), (64, 64), (100, 64), (129, 128)])
def test_by_default_the_order_is_the_largest_that_is_filled(slots: int, order: int):
    assert design_of("hadamard", None, seed=0, gates=3, slots=slots) == Hadamard(seed=0, gates=3, order=order)
    assert design_of("hadamard", 4, seed=0, gates=3, slots=slots) == Hadamard(seed=0, gates=3, order=4)
    assert design_of("plain", None, seed=0, gates=3, slots=slots) == Plain(seed=0, gates=3)


@pytest.mark.parametrize("name", ["spsa-weights", "spsa-gates", "forward-mode", "random"])
@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_direction_is_refused(name: str, n: int):
    with pytest.raises(UserError, match=r"whole number of at least 1"):
        ESTIMATORS.create(name, {"n": n})


@pytest.mark.parametrize("name", ["spsa-weights", "spsa-gates"])
@pytest.mark.parametrize("eps", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_step_that_is_none_is_refused(name: str, eps: float):
    with pytest.raises(UserError, match=r"finite number above 0"):
        ESTIMATORS.create(name, {"eps": eps})


@pytest.mark.parametrize("name", ["spsa-gates", "forward-mode"])
@pytest.mark.parametrize("order", [0, 3, -4, 12])
def test_an_order_that_is_no_power_of_two_is_refused(name: str, order: int):
    with pytest.raises(UserError, match=r"power of two: 1, 2, 4, 8"):
        ESTIMATORS.create(name, {"order": order})
    assert ESTIMATORS.create(name, {"order": 64}) is not None


@pytest.mark.parametrize("name", ["spsa-gates", "forward-mode"])
def test_designs_that_are_unknown_or_have_no_order_are_refused(name: str):
    with pytest.raises(UserError, match=r"Allowed: hadamard, plain"):
        ESTIMATORS.create(name, {"design": "fourier"})
    with pytest.raises(UserError, match=r"has no order"):
        ESTIMATORS.create(name, {"design": "plain", "order": 8})
