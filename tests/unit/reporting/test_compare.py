"""The tables and the plot of a comparison, of figures made up by hand."""

import math
import re
from typing import Any

import pytest

from secateur.reporting.compare import compare_table, degradation, relative
from secateur.reporting.plot import MARKERS, compare_plot, logarithmic, points
from secateur.reporting.spread import markdown, spread


def found(
    perplexities: dict[tuple[str, float], list[float | None]], reached: dict[tuple[str, float], float] | None = None
) -> Any:
    cells = [
        {"entry": method, "ratio": ratio, "seed": seed, "perplexity": value and float(value), "seconds": None if value is None else 2.0,
         "ratio_reached": None if value is None else (reached or {}).get((method, ratio), ratio),
         "refused": "it cannot\nbe met." if value is None else None}
        for (method, ratio), values in perplexities.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return {
        "model": "toy", "perplexity_before": 10.0, "evaluation": "8 windows", "calibration": {"0": "drawn with seed 0"}, "cells": cells,
        "command": "secateur compare toy", "environments": [
            {"cpu": "abacus", "threads": 1, "device": "cpu", "secateur": "1", "torch": "2", "transformers": "3", "python": "4"}
        ], "overlap": {"0": {"in_calibration_text_ratio": 0.0123}, "1": {"in_calibration_text_ratio": 0.02}},
    }  # fmt: skip


BOTH = found(
    {("a", 0.2): [12, 14], ("a", 0.5): [20, 20], ("b", 0.2): [16, 16], ("b", 0.5): [None, 50], ("c", 0.2): [19, 19],
     ("c", 0.5): [None, None]},
    {("b", 0.2): 0.25},
)  # fmt: skip


def test_the_table_of_perplexities() -> None:
    table = compare_table(BOTH)
    rows = re.search(r"\| method \| 20% \| 50% \| seconds \|\n\| --- \| --- \| --- \| --- \|\n((?:\|.*\n)+)", table)
    assert rows is not None
    assert rows[1].splitlines() == [
        "| dense | 10.00 | 10.00 | - |", "| `a` | 13.00 (12.00 to 14.00) | 20.00 | 2.0 |",
        "| `b` | 16.00 | 50.00, 1 of 2 seeds | 2.0 |",
        "| `c` | 19.00 | - | 2.0 |",
    ]  # fmt: skip


def test_the_table_of_degradations() -> None:
    assert degradation(BOTH, "a", 0.2) == 3
    assert relative(BOTH, "a", 0.2) == 0.5
    assert relative(BOTH, "b", 0.2) == 2
    assert relative(BOTH, "a", 0.5) == 0.25
    assert relative(BOTH, "c", 0.5) is None
    table = compare_table(BOTH)
    assert f"| `a` | 0.500 | 0.250 | {math.sqrt(0.125):.3f} |\n| `b` | 2.000 | 4.000 | {math.sqrt(8):.3f} |" in table
    assert "| `c` | 3.000 | - | - |" in table


def test_a_better_model_than_the_original_has_no_ratio_to_it() -> None:
    better = found({("a", 0.2): [9.0], ("b", 0.2): [12.0]})
    assert relative(better, "b", 0.2) is None
    assert relative(better, "a", 0.2) == -0.5
    assert "| `a` | -0.500 | - |" in compare_table(better)


def test_one_method_has_nothing_to_be_relative_to() -> None:
    assert "relative" not in compare_table(found({("a", 0.2): [12.0]}))


def test_what_was_missed_refused_and_what_it_was_made_with() -> None:
    table = compare_table(BOTH)
    assert "## Ratios reached, where not what was asked\n\n- `b` at 20%: 25.00%\n" in table
    assert "- `b` at 50%, seed 0: it cannot be met.\n- `c` at 50%, seed 0, 1: it cannot be met.\n" in table
    assert "2.00% occur in the calibration text" in table
    assert (
        "    secateur compare toy\n\non\n\n- cpu on abacus, 1 threads, Secateur 1, torch 2, transformers 3, Python 4\n" in table
    )
    clean = compare_table(found({("a", 0.2): [12.0], ("b", 0.2): [13.0]}, {("a", 0.2): 0.2049}))
    assert "Ratios reached" not in clean and "Refused" not in clean


def test_the_points_of_a_line() -> None:
    assert points(BOTH, "a") == [(0.2, 13, 12, 14), (0.5, 20, 20, 20)]
    assert points(BOTH, "b") == [(0.25, 16, 16, 16), (0.5, 50, 50, 50)]
    assert points(found({("a", 0.5): [math.inf, 30.0], ("a", 0.2): [12.0]}), "a") == [(0.2, 12, 12, 12), (0.5, 30, 30, 30)]


@pytest.mark.parametrize(("largest", "wanted"), [(29.0, False), (31.0, True)])
def test_the_axis_is_logarithmic_where_the_range_asks_for_it(largest: float, wanted: bool) -> None:
    results = found({("a", 0.2): [12.0], ("a", 0.5): [largest]})
    assert logarithmic(results, {"a": points(results, "a")}) == wanted
    assert compare_plot(results) != compare_plot(found({("a", 0.2): [12.0], ("a", 0.5): [20.0]}))


def test_the_plot_names_every_method_in_the_order_of_the_lines() -> None:
    many = found({(f"method-{i}", ratio): [12.0 + i * ratio] for i in range(12) for ratio in (0.2, 0.5)})
    image = compare_plot(many)
    assert image == compare_plot(many)
    assert image.startswith("<?xml") and image.rstrip().endswith("</svg>")
    assert re.findall(r">(method-\d+|dense)<", image) == [*(f"method-{i}" for i in reversed(range(12))), "dense"]
    assert [tick for tick in ("20%", "50%", "perplexity", "toy") if f">{tick}<" not in image] == []
    assert len(set(MARKERS)) == 10, "with the colour and the dashes, every line looks its own"


def test_a_method_without_a_cell_is_left_out_of_the_plot() -> None:
    image = compare_plot(found({("a", 0.2): [12.0], ("b", 0.2): [None]}))
    assert ">a<" in image and ">b<" not in image


def test_spread_and_markdown() -> None:
    assert spread([1.0, None, 2.0], 1) == "1.5 (1.0 to 2.0)"
    assert spread([1.01, 1.02], 1) == "1.0"
    assert spread([None], 1) == "-"
    assert markdown(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1/2 | 3 |\n"
