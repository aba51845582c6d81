"""What scoring takes, for criteria that work for it: bytes in memory, and operations."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from secateur import axes
from secateur.criteria.criterion import WorkingCriterion
from secateur.errors import UserError
from secateur.plan import parameters
from secateur.settings import spell_bytes
from secateur.streaming.memory import resident

if TYPE_CHECKING:
    from secateur.recipes.job import Job


def scoring_peak(job: "Job") -> int:
    """Bytes in memory while the reader that takes most is scored; 0 where scoring is no work.

    Raises `UserError` if they are more than `--max-memory`: no choice of batches helps.
    """
    if not isinstance(job.criterion, WorkingCriterion):
        return 0
    largest = 0
    for axis, columns, outs in readers(job):
        mentioned = [spec for spec in job.binding.layer.values() if spec.mentions(axis)]
        weights = parameters(mentioned, job.binding.sizes) * job.source.dtype(job.binding.embedding).itemsize
        largest = max(largest, weights + job.criterion.scoring_bytes(columns, outs))
    found = resident() + largest if largest else 0
    if job.limit is not None and found > job.limit:
        raise UserError(
            f"--max-memory is {spell_bytes(job.limit)}, and scoring by {job.criterion.name} needs about {spell_bytes(found)}: "
            f"{spell_bytes(resident())} for the program, {spell_bytes(largest)} for the largest matrix and what is made of it. Give "
            f"more, fewer --axes, or a --method without such work, as flap."
        )
    return found


def scoring_flops(job: "Job") -> float:
    """Operations, in those of float32, of scoring every reader of every layer in scope."""
    if not isinstance(job.criterion, WorkingCriterion):
        return 0.0
    return len(job.scope.layers) * sum(job.criterion.scoring_flops(columns, outs) for _, columns, outs in readers(job))


def readers(job: "Job") -> Iterator[tuple[str, int, int]]:
    """(axis, columns, outputs) of every reader of a layer."""
    for axis in job.scope.axes:
        for name in job.binding.readers(axis):
            spec = job.binding.layer[name]
            shape = axes.shape(spec, job.binding.sizes)
            yield axis, shape[min(spec.inputs)], shape[1 - min(spec.inputs)]
