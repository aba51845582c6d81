"""How good are gradient estimates? Every estimator against the exact gradient, and what pruning by it leaves.

For each estimator and seed, in a fresh process, so that its peak memory is its own: rank correlation of the units' scores with
the exact ones, cosine of the gate gradients, passes, time, memory, and the perplexity after pruning. The seed draws the
calibration blocks as well as the estimator's directions. Controls: a random slope, a constant gradient, and criteria that use none.
"""

import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.allocation.choose import Scores
from secateur.criteria.unit import CoupledGroup
from secateur.errors import UserError
from secateur.recipes.cells import cells_of, make_out, pruning, remembered
from secateur.recipes.differentiate import differentiate
from secateur.recipes.job import Job, prepare
from secateur.recipes.prune import prune
from secateur.recipes.result import PruneResult
from secateur.recipes.steps import gather, scores_of
from secateur.reporter import Quiet, Reporter
from secateur.runs import RunDirectory, environment
from secateur.settings import PruneSettings
from secateur.statistics.weight_gradient import WeightGradient
from secateur.streaming.collect import Store
from secateur.streaming.source import read_layer
from secateur.studies import StudySettings

EXACT = "backprop"
ESTIMATED = (
    EXACT, "spsa-weights:n=1", "spsa-weights:n=16", "spsa-weights:n=128", "spsa-gates:n=16,design=plain",
    "spsa-gates:n=16,design=hadamard", "spsa-gates:n=128,design=plain", "spsa-gates:n=128,design=hadamard", "forward-mode:n=16",
    "random", "constant",
)  # fmt: skip
CONTROLS = ("random", "magnitude", "wanda-sp")
COMPENSATIONS = ("none", "least-squares")
PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One estimator under one seed. `gradient` is None for a criterion that needs none."""

    method: str
    gradient: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one arm showed. Correlations and the cosine are with the exact gradient of the same calibration blocks."""

    method: str
    gradient: str | None
    seed: int
    spearman: dict[str, float | None]
    """Axis -> mean over layers of the rank correlation of the units' scores; None where a layer's are all equal."""
    cosine: float | None
    forward_passes: int
    backward_passes: int
    seconds: float | None
    """Of the gradient alone, when it was estimated."""
    peak_memory_bytes: int | None
    perplexity: dict[str, dict[str, float]]
    """Ratio -> compensation -> perplexity after pruning."""


@dataclass(frozen=True, kw_only=True)
class Study:
    model: str
    perplexity_before: float
    evaluation: str
    calibration: str
    rows: tuple[Row, ...]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def study(settings: StudySettings, report: Reporter) -> Study:
    """Run all arms, the exact one first; a second call takes what the first one finished from its run directory."""
    make_out(settings.out)
    arms = [Arm(method="fms", gradient=g, seed=s) for s in settings.seeds for g in settings.estimators or ESTIMATED]
    arms += [Arm(method=m, gradient=None, seed=s) for s in settings.seeds for m in CONTROLS]
    run = cells_of(settings, _checked(settings, arms), "study", estimators=None)
    found = [remembered(run, f"{arm}", partial(_apart, settings, arm)) for arm in report.track(arms, "studying", len(arms))]
    shutil.rmtree(settings.out / PRUNED, ignore_errors=True)
    rows = tuple(Row(**body["row"]) for body in found)
    first = found[0]
    return Study(
        model=settings.model, perplexity_before=first["before"], evaluation=first["evaluation"], calibration=first["calibration"],
        rows=rows, environment=environment(),
    )  # fmt: skip


def _checked(settings: StudySettings, arms: Sequence[Arm]) -> Job:
    """The first arm's job. Raises `UserError` for anything that an arm would refuse, before the first one starts."""
    first, *others = settings.ratios
    jobs = [prepare(_settings(settings, arm, ratio=first)) for arm in arms if arm.seed == settings.seeds[0]]
    for ratio in others:  # a ratio is met or not whatever the arm
        prepare(_settings(settings, arms[0], ratio=ratio))
    return jobs[0]


def _apart(settings: StudySettings, arm: Arm) -> dict[str, Any]:
    """One arm in a fresh process."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            return fresh.submit(run_arm, settings, arm).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"the process of {arm.gradient or arm.method} with seed {arm.seed} was killed, perhaps for want of memory. Leave that "
            f"estimator out, or free memory: the same command then goes on from there."
        ) from error


def run_arm(settings: StudySettings, arm: Arm) -> dict[str, Any]:
    """One arm, in this process. Returns the row and what is the same for all."""
    results = {r: {} for r in settings.ratios}
    measured = _gradient(settings, arm) if arm.gradient else _without(arm)
    last: PruneResult | None = None
    for ratio in settings.ratios:
        for how in COMPENSATIONS:
            last = prune(_settings(settings, arm, ratio=ratio, compensate=how), Quiet())  # type: ignore[assignment]
            assert isinstance(last, PruneResult)
            results[ratio][how] = last.perplexity_after
    assert last is not None
    row = {**measured, "perplexity": {str(r): v for r, v in results.items()}}
    return {"row": row, "before": last.perplexity_before, "evaluation": last.evaluation, "calibration": last.calibration}


def _settings(settings: StudySettings, arm: Arm, **options: Any) -> PruneSettings:
    return pruning(
        settings, out=settings.out / PRUNED, method=arm.method, gradient=arm.gradient, seed=arm.seed, force=True, **options
    )


def _without(arm: Arm) -> dict[str, Any]:
    return {
        "method": arm.method, "gradient": None, "seed": arm.seed, "spearman": {}, "cosine": None, "forward_passes": 0,
        "backward_passes": 0, "seconds": None, "peak_memory_bytes": None,
    }  # fmt: skip


def _gradient(settings: StudySettings, arm: Arm) -> dict[str, Any]:
    job, store, gradients, took = _estimated(settings, arm)
    exact_arm = Arm(method=arm.method, gradient=EXACT, seed=arm.seed)
    exact, exact_store, exact_gradients, _ = _estimated(settings, exact_arm)
    scores, exact_scores = scores_of(job, store, gradients, Quiet()), scores_of(exact, exact_store, exact_gradients, Quiet())
    return {
        "method": arm.method, "gradient": arm.gradient, "seed": arm.seed, "spearman": correlations(scores, exact_scores),
        "cosine": cosine(gates(job, gradients), gates(exact, exact_gradients)), "forward_passes": took["forward_passes"],
        "backward_passes": took["backward_passes"], "seconds": took["seconds"], "peak_memory_bytes": took["peak_memory_bytes"],
    }  # fmt: skip


def _estimated(settings: StudySettings, arm: Arm) -> tuple[Job, Store, Store, dict[str, Any]]:
    job = prepare(_settings(settings, arm, ratio=settings.ratios[0]))
    run = RunDirectory.make(job.runs, model=job.source.fingerprint, blocks=job.blocks[0].fingerprint, dtype=str(job.dtype))
    store = gather(job, run, Quiet())
    gradients, took = differentiate(job, run, Quiet())
    if gradients is None or took is None:
        raise UserError(f"--estimators holds {arm.gradient!r}, and {arm.method} uses no gradient.")
    return job, store, gradients, took


def correlations(scores: Scores, exact: Scores) -> dict[str, float | None]:
    """Axis -> mean over layers of Spearman's rank correlation."""
    axes = dict.fromkeys(axis for _, axis in scores)
    each = {axis: [spearman(scores[key], exact[key]) for key in scores if key[1] == axis] for axis in axes}
    known = {axis: [v for v in values if v is not None] for axis, values in each.items()}
    return {axis: sum(values) / len(values) if values else None for axis, values in known.items()}


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Correlation of the ranks, where equal values share the mean of theirs; None if all of either are equal."""
    ranks = torch.stack([_ranks(x) for x in (a, b)])
    spread = ranks.std(1) if len(a) > 1 else torch.zeros(2)
    return float(torch.corrcoef(ranks)[0, 1]) if bool((spread > 0).all()) else None


def _ranks(x: Tensor) -> Tensor:
    _, which, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[which].double()


def gates(job: Job, gradients: Store) -> Tensor:
    """The gate gradients of all units: sums of the readers' weight times gradient, which they equal."""
    parts = []
    for layer in job.scope.layers:
        for axis in job.scope.axes:
            names = [n for n, s in job.binding.layer.items() if s.mentions(axis)]
            group = CoupledGroup.of(
                layer=layer, axis=axis, sizes=job.binding.sizes, specs=job.binding.layer, weights=read_layer(job.source, layer, names)
            )  # fmt: skip
            module = group.reader.module
            found = gradients.load(layer, modules=[module], kinds=[WeightGradient.kind])[module][WeightGradient.kind]
            parts.append(group.reduce(found.signed, "sum"))
    return torch.cat(parts)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))
