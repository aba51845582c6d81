"""Progress: nothing for what is quick, bars with an estimate on a terminal, a line now and then in a log."""

import io

import pytest
from rich.console import Console

from secateur.cli.terminal import Terminal
from secateur.reporter import Quiet, Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(*, interactive: bool) -> tuple[Terminal, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=100, force_terminal=interactive, color_system=None, legacy_windows=False)
    return Terminal(console, clock), stream, clock


def spend(reporter: Reporter, clock: Clock, seconds: float, count: int, label: str = "layers") -> list[int]:
    done = []
    for item in reporter.track(iter(range(count)), label, count):
        clock.now += seconds
        done.append(item)
    return done


@pytest.mark.parametrize("interactive", [True, False])
def test_both_are_reporters_and_yield_everything(interactive: bool) -> None:
    reporter, _, clock = terminal(interactive=interactive)
    assert isinstance(reporter, Reporter)
    assert spend(reporter, clock, 5.0, 7) == list(range(7))
    assert list(reporter.track([3, 1], "sized")) == [3, 1]


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    reporter, stream, clock = terminal(interactive=False)
    spend(reporter, clock, 4.0, 8)
    assert stream.getvalue().splitlines() == [
        "layers: 3 of 8, about 20 s left",
        "layers: 6 of 8, about 8.0 s left",
    ]


def test_a_log_without_a_total() -> None:
    reporter, stream, clock = terminal(interactive=False)
    for _ in reporter.track(iter(range(3)), "rows"):
        clock.now += 9.0
    assert stream.getvalue().splitlines() == ["rows: 2"]


def test_quick_jobs_leave_no_line() -> None:
    reporter, stream, clock = terminal(interactive=False)
    clock.now += 60.0
    spend(reporter, clock, 0.5, 3)
    assert stream.getvalue() == ""
    spend(reporter, clock, 0.5, 5)
    assert stream.getvalue() == "layers: 4 of 5, about 0.5 s left\n"


def test_only_the_outermost_writes_to_a_log() -> None:
    reporter, stream, clock = terminal(interactive=False)
    for _ in reporter.track(range(2), "layers"):
        spend(reporter, clock, 6.0, 2, "batches")
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["layers", "layers"]


def test_a_bar_comes_after_two_seconds_and_goes() -> None:
    reporter, stream, clock = terminal(interactive=True)
    bars = reporter._bars
    for item in reporter.track(range(10), "layers"):
        bars.refresh()
        assert ("layers" in stream.getvalue()) == (clock.now - 100.0 >= 2.0), item
        clock.now += 0.9
    assert "8/10" in stream.getvalue()
    assert "0:00:01" in stream.getvalue(), "time left"
    assert not bars.tasks
    assert not bars.live.is_started


def test_bars_nest() -> None:
    reporter, stream, clock = terminal(interactive=True)
    for _ in reporter.track(range(2), "layers"):
        for _ in reporter.track(range(2), "batches"):
            clock.now += 3.0
            reporter._bars.refresh()
    assert "layers" in stream.getvalue()
    assert "batches" in stream.getvalue()
    assert not reporter._bars.live.is_started


def test_leaving_early_takes_the_bar_away() -> None:
    reporter, _, _ = terminal(interactive=True)
    layers = reporter.track(range(3), "layers")
    next(layers)
    assert reporter._bars.live.is_started
    del layers
    assert not reporter._bars.live.is_started


def test_words() -> None:
    reporter, stream, _ = terminal(interactive=False)
    reporter.say("reading [model]")
    reporter.warn("another Python")
    assert stream.getvalue() == "reading [model]\nwarning: another Python\n"


def test_quiet_warns_through_logging(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Quiet()
    quiet.say("nobody hears this")
    quiet.warn("another Python")
    assert caplog.messages == ["another Python"]
    assert list(quiet.track(range(3), "layers")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
