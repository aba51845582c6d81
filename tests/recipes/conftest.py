"""What every test of a whole job starts from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own: commands leave their records in it."""
    directory = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same checkpoint is made once in a session."""
    known: dict[str, Path] = {}

    def make(model_type: str, **options: object) -> Path:
        key = f"{model_type} {sorted(options.items())}"
        if key not in known:
            known[key] = tiny_checkpoint(model_type, tmp_path_factory.mktemp("made"), **options)  # type: ignore[arg-type]
        return known[key]

    return make


@pytest.fixture
def checkpoint(tmp_path: Path, made: Callable[..., Path]) -> Callable[..., Path]:
    """`checkpoint("llama", num_hidden_layers=4)` is a model directory of the test's own, with a text beside it."""

    def make(model_type: str, **options: object) -> Path:
        shutil.copytree(made(model_type, **options).parent, tmp_path, dirs_exist_ok=True)
        return tmp_path / "model"

    return make
