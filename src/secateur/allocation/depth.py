"""Which layers leave whole: as many as come nearest to the budget, those of least influence first."""

from collections.abc import Collection, Sequence

from secateur.errors import UserError


def num_leaving(budget: int, *, cost: int, num_layers: int, protected: Collection[int]) -> int:
    """How many layers of `cost` parameters each come nearest to `budget`; of two equally near, the fewer.

    Raises `UserError` if that is none, or more than may leave.
    """
    count, most = max(-((cost - 2 * budget) // (2 * cost)), 0), num_layers - max(len(protected), 1)
    if 0 < count <= most:
        return count
    spare = f", of which {len(protected)} are protected" if protected else ""
    near = "less than half a layer" if not count else f"nearest to {count} layers, and at most {most} may leave"
    raise UserError(
        f"{budget:,} parameters must leave in whole layers of {cost:,}: that is {near}. The model has {num_layers} layers{spare}, "
        f"and one must stay. Ask for a ratio from {1 / num_layers:.3f} to {most / num_layers:.3f}, or use another --method."
    )


def least(influence: Sequence[float], count: int, *, protected: Collection[int] = ()) -> tuple[int, ...]:
    """The `count` layers of least influence that are not protected, ascending; of equal ones the later leaves."""
    able = sorted((i for i in range(len(influence)) if i not in protected), key=lambda i: (influence[i], -i))
    assert count <= len(able), f"{count} of {len(able)} layers"
    return tuple(sorted(able[:count]))
