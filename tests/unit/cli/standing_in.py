"""What stands in for a recipe, and how a command is typed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from typer.testing import CliRunner, Result

from secateur.cli.app import app


@dataclass
class Recipe:
    """Stands in for a recipe: remembers what it was called with, and answers or raises."""

    answer: dict[str, Any] = field(default_factory=dict)
    problem: BaseException | None = None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> "Recipe":
        self.calls.append((args, kwargs))
        if self.problem is not None:
            raise self.problem
        return self

    def to_json(self) -> dict[str, Any]:
        return self.answer

    def table(self) -> dict[str, Any]:
        return self.answer


Install = Callable[..., Recipe]


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args, prog_name="secateur")
