"""The held-out loss before and after, with how sure it is."""

import math
from dataclasses import dataclass
from typing import Any

from secateur.recipes.evaluate import perplexity_of
from secateur.recipes.job import Job
from secateur.reporter import Reporter
from secateur.runs import RunDirectory
from secateur.streaming.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Of one model. `windows`: mean negative log-likelihood of each, nats per token."""

    perplexity: float
    windows: tuple[float, ...]

    @property
    def stderr(self) -> float | None:
        """Standard error of the perplexity over windows, to first order; None for one window."""
        error = _stderr(self.windows)
        return None if error is None or not math.isfinite(self.perplexity) else self.perplexity * error


def loss_of(job: Job, source: Checkpoint, run: RunDirectory | None, report: Reporter, label: str) -> Loss | None:
    """Loss on the held-out windows, None without any; the original's is kept in the run directory."""
    _, held = job.blocks
    if held is None:
        return None
    key = f"losses of {source.fingerprint} on {held.fingerprint} in {job.dtype}" if run else ""
    known = run.recall(key) if run else None
    if known is not None:
        return Loss(perplexity=known["perplexity"], windows=tuple(known["windows"]))
    measured = perplexity_of(source, held, device=job.device, dtype=job.dtype, limit=job.limit, report=report, label=label)
    found = Loss(perplexity=measured.perplexity, windows=tuple(measured.windows.tolist()))
    if run:
        run.remember(key, {"perplexity": found.perplexity, "windows": list(found.windows)})
    return found


def before_and_after(before: Loss | None, after: Loss | None) -> dict[str, Any]:
    """The fields of a `PruneResult`: both perplexities with their standard errors, and the rise of the loss with its own.

    The rise is of the same windows, so its error is that of the mean difference and much smaller than the perplexities' errors say.
    """
    found: dict[str, Any] = {"perplexity_before": None, "perplexity_after": None}
    if before is None or after is None:
        return found
    rises = [b - a for a, b in zip(before.windows, after.windows, strict=True)]
    return {
        "perplexity_before": before.perplexity, "perplexity_after": after.perplexity, "perplexity_stderr_before": before.stderr,
        "perplexity_stderr_after": after.stderr, "loss_rise": math.fsum(rises) / len(rises), "loss_rise_stderr": _stderr(rises),
    }  # fmt: skip


def _stderr(values: "tuple[float, ...] | list[float]") -> float | None:
    """Standard error of their mean."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
