"""A pruning job, made ready: everything that can be decided or refused before anything expensive starts."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from secateur import plan as plans
from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import Allocator, TryingAllocator
from secateur.allocation.choose import Scope, counts, layer_sizes
from secateur.allocation.uniform import Uniform
from secateur.calibration.blocks import Blocks
from secateur.criteria.criterion import Criterion
from secateur.criteria.layer import LayerCriterion
from secateur.errors import UserError
from secateur.export.hub import check_publishing
from secateur.export.huggingface import check_output
from secateur.export.stock import Shape, bound_with_biases
from secateur.families.binding import Binding
from secateur.gradients.estimator import KINDS, Estimator, gradient_request
from secateur.gradients.estimator import working_bytes as gradient_bytes
from secateur.recipes.depth import check_options, layer_scope, leave_whole
from secateur.recipes.differentiate import estimator_for
from secateur.recipes.opening import check_length, open_device, open_model
from secateur.recipes.presets import criterion_of, resolved
from secateur.recipes.reload import NEW, PROMPT
from secateur.recipes.scope import budget_of, leave_units, new_biases, scope_of
from secateur.recipes.scoring import scoring_peak
from secateur.recipes.texts import Texts, open_texts
from secateur.settings import PruneSettings, parse_bytes
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.collect import Request, kinds_of, memory_of
from secateur.streaming.memory import Fit, fit, resident
from secateur.streaming.walk import LAYER
from secateur.surgery.compensate import Compensation, LeastSquares
from secateur.surgery.compensations import COMPENSATIONS
from secateur.surgery.refit import working_bytes
from secateur.surgery.sequential import Sequential
from secateur.surgery.verify import FULL_PRECISION_LAYER

EVALUATED = 512  # positions whose logits are in memory at once


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings, resolved against one model."""

    settings: PruneSettings
    """Nothing in them is left open."""
    source: Checkpoint
    device: torch.device
    dtype: torch.dtype
    criterion: Criterion | LayerCriterion
    compensation: Compensation
    allocator: Allocator | TryingAllocator
    estimator: Estimator | None
    """Of the gradient that the criterion needs."""
    scope: Scope
    budget: int
    """Parameters of the original that must leave; what a compensation adds does not count against a ratio."""
    shape: Shape
    """How the result is expected to be written; for allocations that follow the scores, as unequal layers."""
    leaving: int = 0
    """Layers that leave whole, where the criterion is one of layers."""
    opened: Texts | None = None
    """The texts, where they have been opened before."""

    @property
    def binding(self) -> Binding:
        return self.source.binding

    @cached_property
    def target(self) -> Binding:
        """The result's configuration at the original sizes: the source's own, with new biases where they are needed."""
        return bound_with_biases(self.binding, self.new_biases(), self.dtype)

    @property
    def block_parameters(self) -> int:
        """Of the whole stack of layers."""
        return plans.parameters(self.binding.layer.values(), self.binding.sizes) * self.binding.num_layers

    @cached_property
    def texts(self) -> Texts:
        """Raises `UserError` for texts that cannot be used."""
        return self.opened or open_texts(self.settings, self.source)

    @property
    def blocks(self) -> tuple[Blocks, Blocks | None]:
        """Calibration blocks, and evaluation windows unless none are wanted."""
        return self.texts.drawn, self.texts.held

    @property
    def trial_compensation(self) -> Compensation:
        """What repairs a model that is pruned on trial: least squares in the place of what would take a walk for each."""
        return LeastSquares() if isinstance(self.compensation, Sequential) else self.compensation

    @cached_property
    def request(self) -> Request:
        """Statistics that the criterion and the compensation need."""
        kinds = kinds_of(self.criterion.needs) - KINDS
        if isinstance(self.criterion, LayerCriterion):
            return Request(kinds={LAYER: kinds})
        wanted = Request.of(self.binding, self.scope.axes, kinds, self.criterion.inputs)
        needs = self.compensation.needs
        if isinstance(self.allocator, TryingAllocator):
            needs |= self.trial_compensation.needs
        return wanted | Request.of(self.binding, self.scope.axes, kinds_of(needs))

    @cached_property
    def gradients(self) -> Request:
        """Gradient statistics that the criterion needs."""
        return gradient_request(self.binding, self.scope.axes, kinds_of(self.criterion.needs) & KINDS)

    @cached_property
    def fit(self) -> Fit:
        return self._fit(memory_of(self.request, self.binding), 1)

    @cached_property
    def fit_back(self) -> Fit:
        """Of the walks that gradients take."""
        return self._fit(gradient_bytes(self.gradients, self.binding, self.dtype), self.states)

    @cached_property
    def fit_refit(self) -> Fit:
        """Of the walk that refits, at the widths that the uniform allocation leaves; a layer may stay whole with others."""
        sizes = layer_sizes(self.binding, counts(self.binding, self.scope, Uniform(), self.budget))[self.scope.layers[0]]
        if self.allocator.standardised or len(self.scope.layers) < self.binding.num_layers:
            sizes = self.binding.sizes
        return self._fit(working_bytes(self.binding, self.source, sizes), 1, streams=2)

    @cached_property
    def fit_trials(self) -> Fit:
        """Of the models that are pruned on trial, for an allocation that measures."""
        kept = self.allocator.kept_states if isinstance(self.allocator, TryingAllocator) else 0
        states = kept * torch.Size(self.hidden_shape).numel() * self.dtype.itemsize
        return self._fit(memory_of(self.request, self.binding) + states, 1)

    def _fit(self, statistics: int, states: int, streams: int = 1) -> Fit:
        return fit(
            self.binding, shape=(streams * self.settings.samples, self.settings.seq_len), dtype=self.dtype,
            stored=self.source.dtype(self.binding.embedding), statistics=statistics, limit=self.limit, states=states,
        )  # fmt: skip

    @property
    def states(self) -> int:
        """Copies of the calibration blocks' hidden states that the gradient takes."""
        return self.estimator.states(self.binding, self.gradients) if self.estimator else 0

    @property
    def peak(self) -> int:
        """Bytes that the walks and the scoring will have in memory at most, as far as that can be told."""
        refit = self.fit_refit.peak if isinstance(self.compensation, Sequential) else 0
        back = self.fit_back.peak if self.estimator else 0
        return max(self.fit.peak, self.fit_trials.peak, back, refit, self.scoring, self.logits)

    @cached_property
    def logits(self) -> int:
        """Bytes in memory while logits are computed: of the evaluation, or else of the last check, which keeps to a limit itself."""
        head = torch.Size(self.source.entry(self.binding.embedding).shape).numel()
        stored, evaluated = self.source.dtype(self.binding.embedding).itemsize, self.settings.evaluation != "none"
        if not evaluated and self.limit is not None:
            return 0
        wide = self.dtype.itemsize if evaluated else 4 if 4 * head <= FULL_PRECISION_LAYER else stored
        copies = wide + (stored if stored != wide else 0)
        numbers = 3 * EVALUATED if evaluated else 8 * (PROMPT + NEW)  # of each token, in float32 and some in float64
        return resident() + head * copies + numbers * self.binding.sizes["vocab"] * 4

    @cached_property
    def scoring(self) -> int:
        """Bytes in memory while a reader is scored."""
        return scoring_peak(self)

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """[block, token, hidden] of the calibration blocks' hidden states."""
        return self.settings.samples, self.settings.seq_len, self.binding.sizes["hidden"]

    @property
    def limit(self) -> int | None:
        return parse_bytes(self.settings.max_memory) if self.settings.max_memory else None

    @property
    def runs(self) -> Path:
        """Where run directories are kept: beside the output, so that the next ratio finds them."""
        return self.settings.run_dir or (self.settings.out or Path("out")).absolute().parent / ".secateur"

    def new_biases(self) -> tuple[str, ...]:
        return new_biases(self.binding, self.compensation, self.scope.axes)


def prepare(settings: PruneSettings, texts: Texts | None = None) -> Job:
    """Check the whole job. Raises `UserError`; nothing has been written by then. `texts`: what the settings name, if open."""
    criterion = criterion_of(settings)
    device = open_device(settings.device)
    if settings.out is not None:
        _check_output(settings, settings.out)
    source, dtype = open_model(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code
    )
    binding = source.binding
    settings = resolved(settings, binding.num_layers)
    if settings.push_to_hub is not None:
        check_publishing(settings.push_to_hub)
    whole = isinstance(criterion, LayerCriterion)
    if whole:
        check_options(settings)
    allocator, compensation = ALLOCATORS.spelled(settings.allocation or "uniform"), _compensation(settings)
    estimator = estimator_for(settings, criterion)
    if source.layers:
        raise UserError(
            f"{settings.model!r} was pruned already, into the form with a modelling file of its own, which is not pruned again. Prune "
            "the model it came from instead."
        )
    check_length(binding, settings.seq_len)
    if whole:
        scope = layer_scope(settings, binding)
        budget = budget_of(settings, source, scope, ())
        leaving, shape = leave_whole(binding, scope, budget, settings.format)
    else:
        scope, leaving = scope_of(settings, binding, compensation), 0
        budget, shape = leave_units(settings, source, scope, compensation, allocator)
    return Job(
        settings=settings, source=source, device=device, dtype=dtype, criterion=criterion, compensation=compensation,
        allocator=allocator, scope=scope, budget=budget, shape=shape, estimator=estimator, leaving=leaving, opened=texts,
    )  # fmt: skip


def _compensation(settings: PruneSettings) -> Compensation:
    assert settings.compensate
    if settings.ridge is None:
        return COMPENSATIONS.spelled(settings.compensate)
    name, _, rest = settings.compensate.partition(":")
    if "ridge" not in (able := {f.name for f in fields(COMPENSATIONS[name]) if f.init}) or "ridge=" in rest:  # type: ignore[arg-type]
        twice = "has a ridge already" if "ridge" in able else "has none"
        raise UserError(
            f"--ridge {settings.ridge} was given, and --compensate {settings.compensate} {twice}. It belongs to least-squares and "
            f"sequential: choose one of those, and give the ridge once."
        )
    return COMPENSATIONS.spelled(f"{settings.compensate}{',' if rest else ':'}ridge={settings.ridge!r}")


def _check_output(settings: PruneSettings, out: Path) -> None:
    model = Path(settings.model).expanduser()
    texts = [Path(text) for text in (settings.calibration, settings.evaluation) if text]  # or presets, hub data sets
    inputs = {f"the text {path.name!r}": path for path in texts if path.is_file()}
    inputs |= {"the run directory": settings.run_dir} if settings.run_dir else {}
    check_output(out, force=settings.force, inputs=inputs, model=model if model.is_dir() else None)


def written(job: Job) -> int:
    """Bytes of the result's weights, as the budget wants them."""
    width = job.source.dtype(job.binding.layer_name(0, next(iter(job.binding.layer)))).itemsize
    return job.source.num_bytes - job.budget * width


def plan_settings(settings: PruneSettings) -> dict[str, Any]:
    """What the plan depends on, and nothing that differs between two machines."""
    chosen = settings.to_json()
    for name in (
        "model", "out", "run_dir", "resume", "force", "dry_run", "max_memory", "trust_remote_code", "calibration", "evaluation",
        "allow_overlap", "push_to_hub", "private",
    ):  # fmt: skip  # what was calibrated on is told by the fingerprint of its blocks
        chosen.pop(name)
    return chosen
