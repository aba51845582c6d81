"""The step that refits every matrix beside the dense model, where `--compensate sequential` asks for it."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from secateur.errors import UserError
from secateur.export.huggingface import check_disk
from secateur.plan import Plan
from secateur.reporter import Reporter
from secateur.runs import RunDirectory
from secateur.streaming.walk import Walk
from secateur.surgery.refit import Refit, Rewritten, layer_weights
from secateur.surgery.sequential import Sequential

if TYPE_CHECKING:
    from secateur.recipes.job import Job


def refit(job: "Job", plan: Plan, run: RunDirectory, report: Reporter) -> Rewritten | None:
    """Weights for the plan, refitted layer by layer into the run directory; None for other compensations."""
    if not isinstance(job.compensation, Sequential):
        return None
    identity = json.dumps([plan.to_dict()["layers"], repr(job.compensation)])
    rewritten = Rewritten(directory=run.path / f"sequential-{hashlib.sha256(identity.encode()).hexdigest()[:12]}")
    rewritten.directory.mkdir(exist_ok=True)
    number = job.binding.num_layers
    if rewritten.finished(number) == number:
        report.say(f"refitted weights for this plan are in {rewritten.directory}: no walk needed")
        return rewritten
    check_disk({run.path: disk_of_refit(job, plan)})
    drawn, _ = job.blocks
    fitted = job.fit_refit
    task = Refit(
        walk=Walk.over(job.source, device=job.device, dtype=job.dtype, tokens=fitted.tokens), ids=drawn.ids, plan=plan,
        how=job.compensation, rewritten=rewritten, spill=fitted.spill, resume=job.settings.resume,
    )  # fmt: skip
    try:
        for layer in report.track(task.run(), "refitting", number):
            run.log("refitted", layer=layer, chosen=[told(note) for note in task.report if note["layer"] == layer])
    except OSError as error:
        raise UserError(
            f"refitting failed at {error.filename or str(run.path)!r}: {error.strerror or error}. The layers finished so far are "
            f"kept: once this is mended, the same command with --resume goes on from there."
        ) from error
    return rewritten


def told(note: Mapping[str, Any]) -> dict[str, Any]:
    """A note on a matrix as JSON, which has no infinite ridge (the matrix stays) and no NaN (nothing was held out)."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in note.items()}


def disk_of_refit(job: "Job", plan: Plan) -> int:
    """Bytes of the refitted weights of all layers, and of both streams of hidden states before and behind a layer."""
    tokens = job.settings.samples * job.settings.seq_len
    streams = 4 * tokens * job.binding.sizes["hidden"] * job.dtype.itemsize
    return streams + sum(layer_weights(job.binding, job.source, plan.layer_sizes(i)) for i in range(job.binding.num_layers))
