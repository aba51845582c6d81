"""How a method is spelled in a comparison."""

from typing import Any

import pytest

from secateur.errors import UserError
from secateur.studies import CompareSettings, parse_entry


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("flap", {"method": "flap"}),
        ("flap:metric=wifn", {"method": "flap:metric=wifn"}),
        ("flap[compensate=bias,allocation=global]", {"method": "flap", "compensate": "bias", "allocation": "global"}),
        ("fms[gradient=spsa-gates:n=64,design=plain,axes=kv,ffn]",
         {"method": "fms", "gradient": "spsa-gates:n=64,design=plain", "axes": "kv,ffn"}),
        ("flap:metric=wifn[ridge=1e-3,protect=0-2,-1]", {"method": "flap:metric=wifn", "ridge": 0.001, "protect": "0-2,-1"}),
    ],
)  # fmt: skip
def test_an_entry(text: str, settings: dict[str, Any]) -> None:
    assert parse_entry(text) == settings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[compensate=bias]", "is not a method with its choices"),
        ("flap[]", "is not a method with its choices"),
        ("flap[compensate=bias", "is not a method with its choices"),
        ("flap[compensate]", "'compensate' of 'flap[compensate]' is not a choice"),
        ("flap[compansate=bias]", "Did you mean compensate?"),
        ("flap[seed=3]", "Known: gradient, compensate, allocation, axes, protect, ridge."),
        ("flap[ridge=1,ridge=2]", "the choice 'ridge' is given twice"),
        ("flap[ridge=much]", "ridge = 'much' is not allowed"),
        ("flap[protect=all]", "is not a layer or a range"),
    ],
)
def test_what_is_no_entry(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        CompareSettings(model="m", out="o", methods=f"magnitude {text}")
    assert told in str(caught.value)
    assert text in str(caught.value)
