"""What every test starts from: no network, and hypothesis without deadlines (a busy machine is not a failure)."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Real data and trained models that lie beside a checkout: `shared("models/stories260K")`; skips where they do not."""
    root = Path(__file__).parents[2] / "shared"

    def find(path: str) -> Path:
        if not (root / path).exists():
            pytest.skip(f"{path} is not beside this checkout (looked in ../shared)")
        return root / path

    return find
