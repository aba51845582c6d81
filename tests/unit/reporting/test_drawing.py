"""Scales, labels and words of the plots."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.reporting.command import command, portable
from secateur.reporting.kept import kept_rows
from secateur.reporting.scatter import Axis, Point, Series, front, line_plot, pareto_plot
from secateur.reporting.svg import HEAT, Scale, below, heat, shorten, text, tick_text
from secateur.reporting.words import bytes_of, change, count, digits, duration, plus_minus

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8)


@given(VALUES, st.booleans())
def test_a_scale_has_ticks_within_it_whatever_the_values(values: list[float], log: bool) -> None:
    scale = Scale.over(values, 40.0, 350.0, log=log)
    ticks = scale.ticks()
    assert scale.low < scale.high and 1 <= len(ticks) <= 6
    assert all(40 <= scale.at(tick) <= 350 for tick in [*ticks, -1e300, 1e300])
    assert len({tick_text(tick) for tick in ticks}) == len(ticks) or scale.high / abs(scale.low or 1) < 1.01


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([0.0, 10.0], False, [0, 2.5, 5, 7.5, 10]),
        ([24.2, 26.2], False, [24.5, 25, 25.5, 26]),
        ([7.0, 52.0], True, [10, 20, 50]),
        ([1e-12, 1e-3], True, [1e-12, 1e-10, 1e-8, 1e-6, 1e-4]),
        ([170_000.0, 260_000.0], False, [180_000, 200_000, 220_000, 240_000, 260_000]),
    ],
)
def test_ticks_are_round(values: list[float], log: bool, ticks: list[float]) -> None:
    assert Scale.over(values, 0.0, 300.0, log=log).ticks() == pytest.approx(ticks)


def test_a_logarithmic_scale_goes_by_ratios() -> None:
    scale = Scale(low=1.0, high=100.0, start=0.0, end=200.0, log=True)
    assert [scale.at(v) for v in (1.0, 10.0, 100.0)] == pytest.approx([0, 100, 200])
    assert Scale(low=0.0, high=4.0, start=10.0, end=50.0).at(1.0) == 20


@pytest.mark.parametrize("step", range(21))
def test_what_is_written_on_a_colour_can_be_read(step: int) -> None:
    colour, on = heat(step / 20)
    mixed = [int(c) / 255 for c in re.findall(r"\d+", colour)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in mixed]
    light = sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))
    ink = 0.0 if on == "on-light" else 1.0
    assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) >= 4.5


def test_the_colours_brighten_with_the_fraction() -> None:
    brightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in HEAT]
    assert brightness == sorted(brightness), "so that it is read without colour vision too"
    assert heat(-1.0) == heat(0.0) and heat(2.0) == heat(1.0)


def test_a_long_label_loses_its_middle() -> None:
    assert shorten("a" * 5, 5) == "aaaaa" and shorten("abcdefghij", 6) == "abc…ij" and shorten("abc", 1) == "…"
    found = text(0.0, 0.0, "abcdefghij" * 9, room=100.0)
    assert f"<title>{'abcdefghij' * 9}</title>" in found and len(re.sub("<.*?>", "", found.split("</title>")[1])) <= 16
    assert 'x="350.' not in below(357.0, 0.0, "100,000"), "a label at the edge moves in"


def test_the_front_is_what_nothing_is_better_than() -> None:
    points = [
        Point(number=n, x=x, y=y, told="")
        for n, (x, y) in enumerate([(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (3.0, 3.0), (2.0, 2.0), (1.0, 4.0)])
    ]
    assert [p.number for p in front(points)] == [1, 2, 4, 0], "equal points do not beat each other"


def test_a_plane_needs_two_points() -> None:
    one, nowhere = Point(number=1, x=1.0, y=1.0, told="one"), Point(number=2, x=float("nan"), y=2.0, told="nowhere")
    assert pareto_plot([one, nowhere], Axis(name="x"), Axis(name="y")) is None
    both = pareto_plot([one, Point(number=2, x=2.0, y=0.5, told="two")], Axis(name="x"), Axis(name="y"))
    assert both and both.count("<circle") == 2 and "two" in both
    assert line_plot([Series(number=1, name="m", points=[])], Axis(name="x"), Axis(name="y"), reference=1.0) is None


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (count(512), "512"), (count(6_557_952), "6.56 M"), (count(1.35e9), "1.35 B"), (digits(0.00012), "1.20e-04"),
        (digits(1234.5), "1,234"),
        (digits(float("inf")), "infinite"), (digits(0), "0"), (bytes_of(900), "900 B"), (bytes_of(3 * 2**29), "1.50 GiB"),
        (bytes_of(2**50), "1,024 TiB"), (duration(0.0012), "1.20 ms"), (duration(0.41), "0.41 s"), (duration(250), "4 min 10 s"),
        (duration(7500), "2 h 05 min"), (change(100, 70), "−30.0%"), (change(0, 1), ""), (plus_minus(26.2387, 1.117), "26.2 ± 1.1"),
        (plus_minus(0.0819, 0.0041), "0.0819 ± 0.0041"), (plus_minus(3.5, None), "3.50"), (plus_minus(float("inf"), 1.0), "infinite"),
        (plus_minus(123456, 98.7), "123,456 ± 99"), (tick_text(2e6), "2M"), (tick_text(1e-7), "1e-7"), (tick_text(0.25), "0.25"),
    ],
)  # fmt: skip
def test_words(found: str, wanted: str) -> None:
    assert found == wanted


def test_layers_that_are_alike_are_one_row() -> None:
    figures: Any = {
        "axes": {"ffn": {"units": 1640}, "kv": {"units": 4}},
        "layers": [{"kv": 3, "ffn": 1200}] * 3 + [None] * 2 + [{"kv": 4, "ffn": 9}],
    }
    table = kept_rows(figures)
    assert table and table.head == ["kv heads", "MLP channels"]
    assert [(row.layers, row.cells) for row in table.rows] == [
        ("0 to 2", ["3 of 4", "1,200 of 1,640"]), ("3 to 4", ["left whole", "left whole"]), ("5", ["4 of 4", "9 of 1,640"]),
    ]  # fmt: skip
    assert kept_rows({}) is None


def test_commands_and_paths() -> None:
    settings = portable({
        "model": "/home/me/base", "other": ["/home/me/a b", "org/name"], "tasks": ["piqa", "mine=/home/me/rows.jsonl"],
        "out": "runs/x/smaller",
        "prompt": ["one", "two's"], "seed": 0, "paper": True, "griffin": False, "text": None, "run_dir": "/home/me/runs",
    })  # fmt: skip
    assert settings["other"] == ["a b", "org/name"] and "run_dir" not in settings
    assert command(settings, "bench") == (
        "secateur bench base 'a b' org/name --tasks piqa,mine=rows.jsonl --out smaller "
        "--prompt one --prompt 'two'\"'\"'s' --seed 0 --paper"
    )
    assert portable({"models": [{"model": "other", "path": "/home/me/base"}]}) == {
        "models": [{"model": "other", "path": "base"}]
    }
