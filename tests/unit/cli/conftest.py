"""A command without its recipe."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.cli.standing_in import Install, Recipe


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    monkeypatch.chdir(tmp_path)  # where commands leave their records

    def install(name: str, **values: Any) -> Recipe:
        stand_in, module = Recipe(**values), ModuleType(f"secateur.recipes.{name}")
        setattr(module, name, stand_in)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return stand_in

    return install
