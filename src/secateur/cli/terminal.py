"""Progress on a person's screen, or in a log file."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE = 2.0  # seconds of a job before its progress is worth showing
EVERY = 10.0  # seconds between two lines of a log


class Terminal:
    """A `Reporter` on stderr: bars on a terminal, now and then a line anywhere else."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bars = _LateBars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=True, redirect_stdout=False, get_time=clock,
        )  # fmt: skip
        self._depth = 0
        self._last_line = clock()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        if total is None and isinstance(items, Sized):
            total = len(items)
        self._depth += 1
        try:
            yield from self._bar(items, label, total) if self._console.is_terminal else self._lines(items, label, total)
        finally:
            self._depth -= 1

    def _bar(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
        bar = self._bars.add_task(label, total=total)
        self._bars.start()
        try:
            for item in items:
                yield item
                self._bars.advance(bar)
        finally:
            self._bars.remove_task(bar)
            if not self._bars.tasks:
                self._bars.stop()

    def _lines(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
        began = self._clock()
        for done, item in enumerate(items, start=1):
            yield item
            now = self._clock()
            if self._depth == 1 and now - began >= PATIENCE and now - self._last_line >= EVERY:
                self._last_line = now
                left = f" of {total}, about {duration((now - began) / done * (total - done))} left" if total else ""
                self.say(f"{label}: {done}{left}")


class _LateBars(Progress):
    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0.0) >= PATIENCE])


def duration(seconds: int | float) -> str:
    """`0.4 s`, `35 s`, `4 min 10 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
