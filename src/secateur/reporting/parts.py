"""What the page's sections are made of. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure to be seen first. `before` may be empty."""

    name: str
    value: str
    before: str = ""
    change: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """`numeric`: how many columns from the right are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: int


@dataclass(frozen=True, kw_only=True)
class Plot:
    image: Markup
    caption: str
    title: str = ""
