"""The Python interface: settings in, the recipe's own result out."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import secateur
from secateur.reporter import Quiet
from secateur.settings import EvalSettings, PruneSettings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    seen: list[tuple[Any, Any]] = []

    def answer(settings: Any, report: Any) -> SimpleNamespace:
        seen.append((settings, report))
        return SimpleNamespace(number=len(seen))

    for name in ("prune", "evaluate"):
        module = ModuleType(f"secateur.recipes.{name}")
        setattr(module, name, answer)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_prune(calls: list[tuple[Any, Any]]) -> None:
    result: Any = secateur.prune(Path("a/model"), out=Path("b"), ratio=0.3, axes="ffn", run_dir="runs/1")
    assert result.number == 1
    settings, report = calls[0]
    assert settings == PruneSettings(model="a/model", out=Path("b"), ratio=0.3, axes=("ffn",), run_dir=Path("runs/1"))
    assert isinstance(report, Quiet)


def test_a_forecast_needs_no_output(calls: list[tuple[Any, Any]]) -> None:
    secateur.prune("m", target_params="5M", dry_run=True)
    assert calls[0][0] == PruneSettings(model="m", target_params="5M", dry_run=True)


def test_evaluate_with_a_reporter(calls: list[tuple[Any, Any]]) -> None:
    mine = Quiet()
    secateur.evaluate("m", text="t.txt", seq_len=64, report=mine)
    assert calls[0][0] == EvalSettings(model="m", text="t.txt", seq_len=64)
    assert calls[0][1] is mine


def test_mistakes_are_user_errors(calls: list[tuple[Any, Any]]) -> None:
    with pytest.raises(secateur.UserError, match="unknown setting 'ration'. Did you mean ratio"):
        secateur.prune("m", out="o", ration=0.3)  # type: ignore[call-overload]
    with pytest.raises(secateur.UserError, match="seq_len = 0 is not allowed"):
        secateur.evaluate("m", seq_len=0)
    assert not calls


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        secateur.prunes  # type: ignore[attr-defined]  # noqa: B018
