"""What a long job tells the person who waits for it; how it looks is the caller's affair."""

import logging
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Reporter(Protocol):
    """Passed to every recipe, and from there to whatever takes long."""

    def say(self, text: str) -> None:
        """One line of what is happening now."""
        ...

    def warn(self, text: str) -> None:
        """One line that the person should not miss."""
        ...

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items while showing how far it is. `total`: their number, where `items` cannot tell."""
        ...


class Quiet:
    """No progress; warnings go to the `secateur` logger. What the Python API uses unless told otherwise."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        logging.getLogger("secateur").warning(text)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        return iter(items)


class Batch:
    """For many jobs in a row: how far each is, what is worth a warning once, and nothing else."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._report.warn(text)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        return self._report.track(items, label, total)
