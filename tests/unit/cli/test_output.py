"""Rendering of results: the name of a key says its unit."""

import io
from typing import Any

import pytest
from rich.console import Console

from secateur.cli.output import render, spelled


def shown(result: dict[str, Any], title: str = "Title") -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(title, result))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_check_after_writing_does_not_read_as_a_failure() -> None:
    assert shown({"verified": 0.0, "out": "out"})[1].split("  ")[0] == "largest difference when checked"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("peak_memory_bytes", 2**30 * 3 // 2, "1.50 GiB"),
        ("bytes_before", 900, "900 B"),
        ("bytes", 2**50, "1024.00 TiB"),
        ("seconds", 3.21, "3.2 s"),
        ("seconds", 35.4, "35 s"),
        ("seconds_left", 250, "4 min 10 s"),
        ("seconds", 7500, "2 h 05 min"),
        ("ratio_reached", 0.29987, "29.99%"),
        ("parameters_after", 4718592, "4,718,592"),
        ("perplexity", 12.34567, "12.35"),
        ("stock", True, "yes"),
        ("out", "some/dir", "some/dir"),
        ("axes", ["kv", "ffn"], "kv, ffn"),
        ("notes", ("one note", "and another"), "one note\nand another"),
        ("sizes", {"kv": 4, "ffn": 640}, "kv 4, ffn 640"),
        ("text", None, ""),
        ("settings", {"peak_bytes": 2048}, "peak 2.00 KiB"),
    ],
)
def test_spelling(name: str, value: object, text: str) -> None:
    assert spelled(name, value) == text


def test_before_and_after_stand_side_by_side() -> None:
    lines = shown({
        "out": "o", "parameters_before": 1000, "parameters_after": 700, "perplexity_before": 10.0, "perplexity_after": 12.5,
        "stock": False,
    })  # fmt: skip
    assert [line.split() for line in lines[:4]] == [
        ["Title"],
        ["before", "after", "change"],
        ["parameters", "1,000", "700", "-30.0%"],
        ["perplexity", "10", "12.5", "+25.0%"],
    ]
    assert [line.split() for line in lines[4:]] == [["out", "o"], ["stock", "no"]]


def test_what_was_not_measured_is_not_shown() -> None:
    lines = shown({"perplexity_before": None, "perplexity_after": None, "ridge": None, "seed": 0, "notes": ()})
    assert lines == ["Title", "seed  0"]


def test_words_before_and_after_are_lines_of_their_own() -> None:
    lines = shown({"says_before": "def f():", "says_after": "def g():"})
    assert lines == ["Title", "says before  def f():", "says after   def g():"]


def test_rows_are_a_table() -> None:
    lines = shown({"axes": [{"axis": "ffn", "units": 11008}, {"axis": "kv", "units": 32, "note": "[grouped]"}], "layers": 2})
    assert [line.split() for line in lines] == [
        ["Title"],
        ["layers", "2"],
        ["axes"],
        ["axis", "units", "note"],
        ["ffn", "11,008"],
        ["kv", "32", "[grouped]"],
    ]


def test_units_stand_with_the_value() -> None:
    lines = shown({"peak_memory_bytes": 2**20, "seconds": 1.0, "bytes": 5})
    assert lines == ["Title", "peak memory  1.00 MiB", "time         1.0 s", "size         5 B"]


def test_markup_in_values_is_text() -> None:
    assert "[red]dir" in shown({"out": "[red]dir"})[1]
