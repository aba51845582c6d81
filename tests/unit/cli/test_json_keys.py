"""The names in the JSON that commands print: scripts of other people depend on them, so they only ever grow."""

from dataclasses import fields
from typing import Any

import pytest

from secateur.recipes.evaluate import EvalResult
from secateur.recipes.forecast import Forecast
from secateur.recipes.prune import PruneResult

COMMON = {"method", "ratio", "ratio_reached", "parameters_before", "parameters_after", "seconds", "peak_memory_bytes", "stock"}


@pytest.mark.parametrize(
    ("result", "frozen"),
    [
        (PruneResult, COMMON | {"out"}),
        (Forecast, COMMON),
        (EvalResult, {"perplexity", "tokens", "seq_len", "text"}),
    ],
)
def test_keys_are_frozen(result: Any, frozen: set[str]) -> None:
    unset = object.__new__(result)
    for field in fields(result):
        object.__setattr__(unset, field.name, None)
    assert frozen <= result.to_json(unset).keys()
