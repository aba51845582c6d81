"""The step that gathers gradients, where a method needs them: which estimator, where its findings are kept, and what it took."""

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import torch

from secateur.criteria import CRITERIA
from secateur.criteria.criterion import Criterion
from secateur.criteria.layer import LayerCriterion
from secateur.errors import UserError
from secateur.export.huggingface import check_disk
from secateur.gradients import ESTIMATORS
from secateur.gradients.estimator import KINDS, Estimator, Task, statistics_bytes
from secateur.reporter import Reporter
from secateur.runs import RunDirectory
from secateur.settings import PruneSettings
from secateur.streaming.collect import Store, kinds_of
from secateur.streaming.memory import peak
from secateur.streaming.walk import Walk

if TYPE_CHECKING:
    from secateur.recipes.job import Job

DEFAULT = "backprop"


def estimator_for(settings: PruneSettings, criterion: Criterion | LayerCriterion) -> Estimator | None:
    """The estimator that was asked for, or the exact one. Raises `UserError` where it does not fit the criterion."""
    needed = kinds_of(criterion.needs) & KINDS
    if not needed:
        if settings.gradient is not None:
            able = [name for name in CRITERIA.names() if kinds_of(CRITERIA.create(name).needs) & KINDS]
            raise UserError(
                f"--gradient {settings.gradient} was given, but --method {settings.method} uses no gradient. Leave it out, or "
                f"choose a method that does: {', '.join(able)}."
            )
        return None
    estimator = ESTIMATORS.spelled(settings.gradient or DEFAULT)
    if missing := needed - estimator.kinds:
        able = [name for name in ESTIMATORS.names() if needed <= ESTIMATORS[name].kinds]
        raise UserError(
            f"--method {settings.method} needs the {' and '.join(sorted(missing))}, which --gradient {estimator.name} cannot give. "
            f"Estimators that can: {', '.join(able)}."
        )
    return estimator


def differentiate(job: "Job", run: RunDirectory, report: Reporter) -> tuple[Store | None, dict[str, Any] | None]:
    """Fill a store with the gradient statistics that the criterion needs; and what that took, for the record."""
    estimator = job.estimator
    if estimator is None:
        return None, None
    request = job.gradients
    store = Store(directory=run.path / spelled(estimator, job.settings.seed, job.scope.axes))
    store.directory.mkdir(exist_ok=True)
    forwards, backwards = estimator.passes()
    record = {"estimator": repr(estimator), "forward_passes": forwards, "backward_passes": backwards}
    if store.finished(job.binding.num_layers, request) == job.binding.num_layers:
        report.say(f"gradients of all layers are in {store.directory}: no walk needed")
        return store, run.recall(store.directory.name) or {**record, "seconds": None, "peak_memory_bytes": None}
    drawn, _ = job.blocks
    task = Task(
        walk=Walk.over(job.source, device=job.device, dtype=job.dtype, tokens=job.fit_back.tokens), ids=drawn.ids,
        axes=job.scope.axes, request=request, store=store, seed=job.settings.seed, spill=job.fit_back.spill, resume=job.settings.resume,
    )  # fmt: skip
    check_disk({run.path: disk_of_gradients(job)})
    start = time.perf_counter()
    try:
        for layer in report.track(estimator.estimate(task), f"gradients by {estimator.name}", 2 * job.binding.num_layers):
            run.log("gradient", estimator=estimator.name, layer=layer)
    except OSError as error:
        raise UserError(
            f"gathering gradients failed at {error.filename or str(run.path)!r}: {error.strerror or error}. The layers finished so "
            f"far are kept: once this is mended, the same command with --resume goes on from there."
        ) from error
    found = {**record, "seconds": time.perf_counter() - start, "peak_memory_bytes": peak()}
    run.remember(store.directory.name, found)
    run.log("gradients", **found)
    return store, found


def spelled(estimator: Estimator, seed: int, axes: tuple[str, ...]) -> str:
    """A directory name for an estimator with its options; and where it draws directions, for its seed and what they span."""
    identity = json.dumps([repr(estimator), [seed, *axes] if estimator.seeded else None])
    return f"gradient-{estimator.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def disk_of_gradients(job: "Job") -> int:
    """Bytes of the statistics of all layers, and of the hidden states and gradients on the way."""
    held = 2 * job.states if job.estimator and job.fit_back.spill else 2  # a boundary is complete before the last one goes
    between = held * torch.Size(job.hidden_shape).numel() * job.dtype.itemsize
    return statistics_bytes(job.gradients, job.binding) * job.binding.num_layers + between
