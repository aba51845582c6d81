"""What every test of a whole job starts from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.tiny_checkpoint import tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint("llama", num_hidden_layers=4)` is a fresh model directory, with a text beside it."""
    return lambda model_type, **options: tiny_checkpoint(model_type, tmp_path, **options)
