"""Many prunings of one model, each remembered as soon as it is done: what studies and comparisons are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from secateur.errors import UserError
from secateur.recipes.job import Job
from secateur.runs import RunDirectory
from secateur.settings import PruneSettings
from secateur.studies import SeriesSettings
from secateur.version import __version__


def pruning(settings: SeriesSettings, **options: Any) -> PruneSettings:
    """The settings of one pruning. All of them keep their statistics in one place, so that a second method finds the first's."""
    return PruneSettings(
        model=settings.model, calibration=settings.calibration, evaluation=settings.evaluation, samples=settings.samples,
        allow_overlap=settings.allow_overlap, seq_len=settings.seq_len, dtype=settings.dtype, device=settings.device,
        run_dir=settings.out / "runs", **options,
    )  # fmt: skip


def make_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {str(out)!r} cannot be made: {error.strerror}. Give another directory.") from error


def cells_of(settings: SeriesSettings, job: Job, kind: str, **varied: Any) -> RunDirectory:
    """Where the cells of these settings are remembered. `varied`: any value of the settings that each cell's key tells apart.

    Texts and model are told by their content, and `out` may be moved. Raises `UserError` for texts that cannot be used.
    """
    asked = settings.model_copy(update={"out": Path("out"), "seeds": (0,), "calibration": None, "evaluation": None, **varied})
    texts = " ".join(blocks.fingerprint for blocks in job.blocks if blocks)
    identity = {kind: repr(asked), "model": job.source.fingerprint, "texts": texts, "secateur": __version__}
    return RunDirectory.make(settings.out / ".secateur", **identity)


def remembered(run: RunDirectory, key: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is known under the key, or else what `find` finds."""
    if known := run.recall(key):
        return known
    found = find()
    run.remember(key, found)
    return run.recall(key) or found  # as a second call finds it, to the order of its names
