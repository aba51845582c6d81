"""What pages say by themselves: made parts are up to date, and whatever has a name has a page."""

from collections import Counter

import pytest

from website.blocks import filled, items, pages, stale
from website.recorded import compared, costs, dynamic, gradients
from website.registered import describe, names


def test_made_parts_are_what_the_program_says() -> None:
    assert stale() == [], "run: make docs"


def test_every_registered_name_is_described_once() -> None:
    described = Counter(item for page in pages() for item in items(page.read_text(encoding="utf-8"), "describe"))
    assert set(described) == names()
    assert described.most_common(1)[0][1] == 1


def test_a_page_that_is_out_of_date_is_found() -> None:
    text = "# X\n\n<!-- made: describe allocation:uniform -->\nold\n<!-- end -->\nafter\n"
    made = filled(text)
    assert "old" not in made and "It has no options." in made and made.endswith("<!-- end -->\nafter\n")
    assert filled(made) == made


@pytest.mark.parametrize("make", [describe, compared, costs, dynamic, gradients])
def test_what_does_not_exist_is_an_error(make: object) -> None:
    with pytest.raises((KeyError, StopIteration)):
        make(["nothing:here"])  # type: ignore[operator]


def test_options_are_those_of_the_class() -> None:
    assert "| `metric` | `wifv` | One of `wifv`, `wifn`, `ifv`. |" in describe(["criterion:flap"])
    assert "| `eps` | `0.03125` |" in describe(["gradient:spsa-gates"])


def test_a_table_has_the_means_that_were_recorded() -> None:
    table = compared(["best", "flap[allocation=global]"])
    assert "| `best` | 8.55 / 17.68 / 26.95 | 2.75 / 3.25 / 4.04 | 50.28 / 53.08 / 55.57 |" in table  # as in docs/benchmarks.md
    assert "10.21 / 23.28 / 37.06 | 3.53 / 5.05 / 6.09 |" in table
    assert "25.0% where 20% was asked for" in compared(["shortgpt"])
