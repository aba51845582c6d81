"""The Plan: which layers stay, and which units of each. The only thing that passes from choosing to applying; a JSON file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from secateur import axes
from secateur.axes import Kept, Sizes, Spec
from secateur.errors import UserError

FORMAT = 1
RECORD = "secateur.json"
"""The file beside the weights that holds the plan they were written by, and where they come from."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Kept units per layer and axis of one model.

    `layers[i]` maps an axis to its kept indices, ascending; an axis that is absent stays whole. For `group` there is one tuple
    of kept positions for each kept kv head, all of equal length, because stock attention classes have one group size.
    `dropped` are the layers that leave whole; their entry of `layers` is empty, and those after them move up in the result.
    """

    model_type: str
    fingerprint: str
    """Of the model the plan was made for: `streaming.checkpoint.Checkpoint.fingerprint`, or empty for a model in memory."""
    sizes: Mapping[str, int]
    layers: tuple[Kept, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    dropped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_dropped()
        for number, kept in enumerate(self.layers):
            for axis in kept:
                self._check(number, axis, kept)

    def _check_dropped(self) -> None:
        count, given = len(self.layers), self.dropped
        inside = all(type(i) is int and 0 <= i < count for i in given)
        if not inside or any(a >= b for a, b in zip(given, given[1:], strict=False)) or (given and len(given) == count):
            raise UserError(
                f"the plan drops the layers {list(given)} of {count}: they must be whole numbers from 0 to {count - 1}, ascending "
                f"and distinct, and at least one layer must stay. Mend the plan, or make it anew."
            )
        if pruned := [i for i in given if self.layers[i]]:
            raise UserError(
                f"layer {pruned[0]} of the plan leaves whole, and axes of it are pruned too: {', '.join(self.layers[pruned[0]])}. "
                f"The entry of a layer that leaves must be empty: mend the plan, or make it anew."
            )

    def _check(self, number: int, axis: str, kept: Kept) -> None:
        where = f"layer {number}, axis {axis!r} of the plan"
        if axis not in axes.PRUNABLE or axis not in self.sizes:
            raise UserError(f"{where}: not a prunable axis of {self.model_type!r}. Prunable: {', '.join(self.prunable)}.")
        rows = kept[axis] if axis in axes.PARENT else (kept[axis],)
        if axis in axes.PARENT:
            parents = len(kept.get(axes.PARENT[axis], range(self.sizes[axes.PARENT[axis]])))
            if len(rows) != parents or len({len(row) for row in rows}) != 1:  # type: ignore[arg-type]
                raise UserError(
                    f"{where}: needs one row of equal length for each of the {parents} kept {axes.PARENT[axis]} heads."
                )
        for row in rows:
            inside = all(0 <= i < self.sizes[axis] for i in row)  # type: ignore[union-attr, operator]
            if not row or not inside or any(a >= b for a, b in zip(row, row[1:], strict=False)):  # type: ignore[index]
                raise UserError(
                    f"{where}: kept indices must be ascending, distinct, at least one, and below {self.sizes[axis]}."
                )

    @property
    def prunable(self) -> tuple[str, ...]:
        return tuple(axis for axis in axes.PRUNABLE if self.sizes.get(axis, 1) > 1)

    @property
    def remaining(self) -> tuple[int, ...]:
        """The layers that stay, ascending: a layer's position here is its number in the result."""
        return tuple(i for i in range(len(self.layers)) if i not in self.dropped)

    @property
    def uniform(self) -> bool:
        """Every layer that stays has the same sizes, so one configuration can describe them all."""
        return len({tuple(sorted(self.layer_sizes(i).items())) for i in self.remaining}) == 1

    def layer_sizes(self, layer: int) -> dict[str, int]:
        return axes.kept_sizes(self.sizes, self.layers[layer])

    def block_parameters(self, specs: Iterable[Spec]) -> int:
        """Parameters that stay in the whole stack, of the weights that a layer is made of."""
        specs = tuple(specs)
        return sum(parameters(specs, self.layer_sizes(i)) for i in self.remaining)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "model_type": self.model_type, "fingerprint": self.fingerprint, "sizes": dict(self.sizes),
            "layers": [dict(kept) for kept in self.layers], "settings": dict(self.settings), "seed": self.seed,
            "dropped": list(self.dropped),
        }  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise UserError(f"the plan has format {body['format']!r}; this version reads format {FORMAT}.")
            layers = tuple({a: _tuples(v) for a, v in kept.items()} for kept in body["layers"])
            return cls(
                model_type=body["model_type"], fingerprint=body["fingerprint"], sizes=body["sizes"], layers=layers,
                settings=body["settings"], seed=body["seed"], dropped=_tuples(body.get("dropped", [])),
            )  # fmt: skip
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a plan written by secateur: {type(error).__name__}: {error}.") from error

    @classmethod
    def read(cls, path: Path) -> "Plan":
        return cls.from_json(path.read_text())


def read_record(directory: Path) -> dict[str, Any] | None:
    """The record of a model directory that secateur wrote, its `plan` a Plan; None where there is none."""
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        return {**record, "stock": bool(record["stock"]), "plan": Plan.from_json(json.dumps(record["plan"]))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}."
        raise UserError(f"{path} is damaged, or was not written by this secateur: {why} Copy it again.") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def parameters(specs: Iterable[Spec], sizes: Sizes) -> int:
    """Number of elements of the named weights at the given axis sizes."""
    return sum(prod(axes.shape(spec, sizes)) for spec in specs)


def unit_cost(specs: Iterable[Spec], sizes: Sizes, axis: str) -> int:
    """Parameters that leave a layer with one unit of `axis`: exact, as every weight is linear in each prunable axis."""
    specs = tuple(specs)
    whole = parameters(specs, sizes)
    if axis in axes.PARENT:  # one position of every parent head at once is `parent` units
        return (whole - parameters(specs, {**sizes, axis: sizes[axis] - 1})) // sizes[axes.PARENT[axis]]
    return whole - parameters(specs, {**sizes, axis: sizes[axis] - 1})
