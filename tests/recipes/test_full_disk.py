"""Too little disk is seen before anything is written; a disk that fills all the same costs nothing that was there or finished."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import secateur
from secateur.export import huggingface
from secateur.recipes import evaluate as evaluating
from secateur.streaming.memory import fit
from secateur.streaming.tensorfile import TensorWriter
from secateur.streaming.walk import Walk
from tests.recipes.refusal import command, job, refused, statistics
from tests.recipes.test_interrupted import LAYERS, Make, model_files, no_walk
from tests.recipes.tiny_checkpoint import text_beside


@pytest.fixture
def model(checkpoint: Make) -> Path:
    return checkpoint("llama", num_hidden_layers=LAYERS)


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk be full from the n-th file on whose space is reserved."""

    def arm(files: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            pytest.skip("space cannot be reserved here")
        left, real = [files], os.posix_fallocate

        def reserve(descriptor: int, start: int, length: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor, start, length)

        monkeypatch.setattr(os, "posix_fallocate", reserve)

    return arm


def test_too_little_disk_is_seen_before_anything_is_gathered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    message = refused(model, **job(model))
    assert "too little disk" in message and "97.66 KiB are free" in message and "Free some" in message
    assert statistics(model.parent) == []
    monkeypatch.undo()
    secateur.prune(model, **job(model))
    monkeypatch.setattr(huggingface.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "too little disk" in refused(model, **job(model, out=model.parent / "second"))


def test_a_disk_that_fills_while_gathering_keeps_the_finished_layers(
    model: Path, full_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = model.parent
    secateur.prune(model, **job(model, out=home / "whole", run_dir=home / "runs"))
    full_after(5)  # boundary 0, then boundary and statistics of each layer
    message = refused(model, **job(model))
    assert "No space left" in message and "--resume" in message and ".secateur" in message
    assert statistics(home) == ["layer-000.safetensors", "layer-001.safetensors"]
    monkeypatch.undo()
    secateur.prune(model, **job(model), resume=True)
    assert model_files(home / "out") == model_files(home / "whole")


@pytest.mark.parametrize(
    ("step", "first"),
    [("gathering statistics", "layer-"), ("gathering gradients", "gradient-*/layer-"), ("refitting", "sequential-*/layer-")],
)
def test_a_disk_that_fills_at_any_step_keeps_what_it_has(
    step: str, first: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once the step has stored its second layer."""
    home, real = model.parent, TensorWriter.__init__
    secateur.prune(model, **job(model, effort="best", out=home / "whole", run_dir=home / "runs"))

    def begin(self: TensorWriter, path: Path, layout: Any) -> None:
        if len(list((home / ".secateur").glob(f"*/{first}*"))) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(self, path, layout)

    monkeypatch.setattr(TensorWriter, "__init__", begin)
    message = refused(model, **job(model, effort="best"))
    assert f"{step} failed at" in message and "No space left on device" in message and "--resume" in message
    monkeypatch.undo()
    assert len(list((home / ".secateur").glob(f"*/{first}*"))) == 2
    secateur.prune(model, **job(model, effort="best"), resume=True)
    assert model_files(home / "out") == model_files(home / "whole")


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_fills_while_writing_leaves_everything_as_it_was(
    model: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = model.parent
    secateur.prune(model, **job(model, ratio=0.2, out=home / ("out" if force else "other")))
    real, calls = TensorWriter.write, []

    def write(self: TensorWriter, *args: Any) -> None:
        calls.append(args)
        if len(calls) % 20 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        real(self, *args)

    monkeypatch.setattr(TensorWriter, "write", write)
    message = refused(model, **job(model), **({"force": True} if force else {}))
    assert "No space left on device" in message and "what was measured is kept" in message
    assert len(statistics(home)) == LAYERS
    monkeypatch.undo()
    monkeypatch.setattr(Walk, "layers", no_walk)
    assert secateur.prune(model, **job(model), force=force).ratio_reached > 0.25


def test_a_disk_that_fills_while_evaluating_is_told(
    model: Path, full_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "fit", lambda *a, **k: replace(fit(*a, **k), spill=True))
    full_after(2)
    done = command("eval", str(model), text=text_beside(model), seq_len=16)
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    assert all(part in done.stderr for part in ("No space left on device", "TMPDIR", "--max-memory"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        place = tmp_path / "small"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize(("kib", "finished"), [(80, {1, 2, 3}), (180, {LAYERS})], ids=["gathering", "writing"])
def test_a_disk_that_is_really_full(
    model: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, kib: int, finished: set[int]
) -> None:
    place = small_disk(kib)
    assert "too little disk" in refused(model, **job(model, out=place / "out"))
    monkeypatch.setattr(huggingface, "disk_free", lambda _: 1 << 40)  # somebody else takes the room meanwhile
    with pytest.raises(secateur.UserError, match="No space left on device"):
        secateur.prune(model, **job(model, out=place / "out"))
    assert len(statistics(place)) in finished
    assert {path.name for path in place.iterdir()} == {".secateur"}
    assert not list(place.rglob("*.partial"))
