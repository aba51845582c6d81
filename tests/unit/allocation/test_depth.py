"""How many layers come nearest to a budget, and which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocation.depth import least, num_leaving
from secateur.errors import UserError


@pytest.mark.parametrize(
    ("budget", "count"), [(51, 1), (100, 1), (149, 1), (150, 1), (151, 2), (250, 2), (251, 3), (640, 6), (700, 7), (750, 7)]
)
def test_the_nearest_number_of_layers_leaves_and_of_two_the_fewer(budget: int, count: int) -> None:
    assert num_leaving(budget, cost=100, num_layers=8, protected=()) == count


@given(st.integers(1, 10_000), st.integers(1, 700), st.integers(2, 12))
def test_no_other_number_comes_nearer(budget: int, cost: int, num_layers: int) -> None:
    try:
        count = num_leaving(budget, cost=cost, num_layers=num_layers, protected=())
    except UserError:
        assert 2 * budget <= cost or 2 * budget > (2 * num_layers - 1) * cost
    else:
        assert abs(count * cost - budget) == min(abs(n * cost - budget) for n in range(num_layers))


@pytest.mark.parametrize(
    ("budget", "protected", "told"),
    [
        (50, (), "less than half a layer. .* ratio from 0.125 to 0.875"),
        (0, (), "less than half a layer"),
        (751, (), "nearest to 8 layers, and at most 7 may leave"),
        (651, (0, 7), "nearest to 7 layers, and at most 6 may leave. .* of which 2 are protected.* to 0.750"),
    ],
)
def test_what_whole_layers_cannot_meet_is_refused(budget: int, protected: tuple[int, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        num_leaving(budget, cost=100, num_layers=8, protected=protected)


def test_the_least_influential_leave() -> None:
    influence = [0.9, 0.1, 0.3, 0.2, 0.1, 0.8]
    assert least(influence, 1) == (4,), "of equal ones the later"
    assert least(influence, 3) == (1, 3, 4)
    assert least(influence, 3, protected={1, 4}) == (2, 3, 5)
