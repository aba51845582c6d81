"""A pruning job, made ready: everything that can be decided or refused before anything expensive starts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from secateur import plan as plans
from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import Allocator, TryingAllocator
from secateur.allocation.choose import Scope, counts, layer_sizes
from secateur.allocation.uniform import Uniform
from secateur.calibration.blocks import Blocks, draw_blocks, windows
from secateur.calibration.text import Text, read_texts
from secateur.calibration.tokens import check_vocabulary, load_tokenizer, tokenise
from secateur.criteria import CRITERIA
from secateur.criteria.criterion import Criterion
from secateur.errors import UserError
from secateur.export.huggingface import check_output
from secateur.export.stock import Shape, accepted_heads, accepts_ffn, shape_of, with_biases
from secateur.families.binding import Binding, bind
from secateur.gradients.estimator import KINDS, Estimator, gradient_request, working_bytes
from secateur.recipes.differentiate import estimator_for
from secateur.recipes.opening import DEFAULT_TEXT, check_length, open_device, open_model
from secateur.recipes.presets import recipe_of, resolved
from secateur.settings import PruneSettings, parse_bytes, parse_count, parse_layers, spell_bytes
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.collect import Request, kinds_of, memory_of
from secateur.streaming.memory import Fit, fit
from secateur.surgery.compensate import Compensation
from secateur.surgery.compensations import COMPENSATIONS

EVALUATED = 32_768  # tokens of the perplexity before and after; `secateur eval` takes the whole text


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings, resolved against one model."""

    settings: PruneSettings
    """Nothing in them is left open."""
    source: Checkpoint
    device: torch.device
    dtype: torch.dtype
    criterion: Criterion
    compensation: Compensation
    allocator: Allocator | TryingAllocator
    estimator: Estimator | None
    """Of the gradient that the criterion needs."""
    scope: Scope
    budget: int
    """Parameters of the original that must leave; what a compensation adds does not count against a ratio."""
    shape: Shape
    """How the result is expected to be written; for allocations that follow the scores, as unequal layers."""

    @property
    def binding(self) -> Binding:
        return self.source.binding

    @cached_property
    def target(self) -> Binding:
        """The result's configuration at the original sizes: the source's own, with new biases where they are needed."""
        added = self.new_biases()
        return bind(with_biases(self.binding, added), dtype=self.dtype) if added else self.binding

    @property
    def block_parameters(self) -> int:
        """Of the whole stack of layers."""
        return plans.parameters(self.binding.layer.values(), self.binding.sizes) * self.binding.num_layers

    @cached_property
    def texts(self) -> tuple[Text, Text | None]:
        given = self.settings.evaluation
        calibration, evaluation = read_texts(self.settings.calibration or DEFAULT_TEXT, None if given == "none" else given)
        return calibration, None if given == "none" else evaluation

    @cached_property
    def blocks(self) -> tuple[Blocks, Blocks | None]:
        """Calibration blocks, and evaluation windows unless none are wanted."""
        tokenizer = load_tokenizer(self.source.directory, trust_remote_code=self.settings.trust_remote_code)
        calibration, evaluation = self.texts
        tokens = tokenise(calibration, tokenizer)
        drawn = draw_blocks(tokens, samples=self.settings.samples, seq_len=self.settings.seq_len, seed=self.settings.seed)
        check_vocabulary(drawn.ids, self.binding.sizes["vocab"])
        if evaluation is None:
            return drawn, None
        most = max(EVALUATED, self.settings.seq_len)
        held = windows(tokenise(evaluation, tokenizer, max_tokens=most), seq_len=self.settings.seq_len, max_tokens=most)
        check_vocabulary(held.ids, self.binding.sizes["vocab"])
        return drawn, held

    @cached_property
    def request(self) -> Request:
        """Statistics that the criterion and the compensation need."""
        kinds = kinds_of(self.criterion.needs) - KINDS
        wanted = Request.of(self.binding, self.scope.axes, kinds, self.criterion.inputs)
        return wanted | Request.of(self.binding, self.scope.axes, kinds_of(self.compensation.needs))

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
        return self._fit(working_bytes(self.gradients, self.binding, self.dtype), self.states)

    @cached_property
    def fit_trials(self) -> Fit:
        """Of the models that are pruned on trial, for an allocation that measures."""
        kept = self.allocator.kept_states if isinstance(self.allocator, TryingAllocator) else 0
        states = kept * torch.Size(self.hidden_shape).numel() * self.dtype.itemsize
        return self._fit(memory_of(self.request, self.binding) + states, 1)

    def _fit(self, statistics: int, states: int) -> Fit:
        return fit(
            self.binding, shape=self.hidden_shape[:2], dtype=self.dtype, stored=self.source.dtype(self.binding.embedding),
            statistics=statistics, limit=self.limit, states=states,
        )  # fmt: skip

    @property
    def states(self) -> int:
        """Copies of the calibration blocks' hidden states that the gradient takes."""
        return self.estimator.states(self.binding.num_layers) if self.estimator else 0

    @property
    def peak(self) -> int:
        """Bytes that the walks will have in memory at most, as far as that can be told."""
        return max(self.fit.peak, self.fit_trials.peak, self.fit_back.peak if self.estimator else 0)

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


def prepare(settings: PruneSettings) -> Job:
    """Check the whole job. Raises `UserError`; nothing has been written by then."""
    criterion = CRITERIA.spelled(recipe_of(settings.method).method)
    device = open_device(settings.device)
    if settings.out is not None:
        _check_output(settings, settings.out)
    source, dtype = open_model(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code
    )
    binding = source.binding
    settings = resolved(settings, binding.num_layers)
    assert settings.allocation and settings.compensate
    options = {} if settings.ridge is None else {"ridge": settings.ridge}
    allocator, compensation = ALLOCATORS.spelled(settings.allocation), COMPENSATIONS.create(settings.compensate, options)
    estimator = estimator_for(settings, criterion)
    if source.layers:
        raise UserError(
            f"{settings.model!r} has unequal layers already: secateur wrote it so. Prune the model it came from instead."
        )
    check_length(binding, settings.seq_len)
    scope = _scope(settings, binding, compensation)
    try:
        budget = _budget(settings, source, scope, new_biases(binding, compensation, scope.axes))
        kept = counts(binding, scope, Uniform(), budget)  # also refuses what cannot be met
    except UserError as error:
        hint = f" Or drop --stock, with which only {' and '.join(scope.axes)} can leave here." if settings.stock else ""
        raise UserError(f"{error}{hint}") from None
    shape = shape_of(binding, layer_sizes(binding, kept), new_biases(binding, compensation, scope.axes))
    if allocator.standardised:
        unequal = f"layers get unequal sizes, as --allocation {allocator.name} decides for all layers together"
        shape = Shape(stock=False, config=shape.config, reasons=(unequal,))
    if settings.stock and not shape.stock:
        raise UserError(
            f"--stock cannot be had: {'; '.join(shape.reasons)}. Use --allocation uniform without --protect, or drop --stock."
        )
    return Job(
        settings=settings, source=source, device=device, dtype=dtype, criterion=criterion, compensation=compensation,
        allocator=allocator, scope=scope, budget=budget, shape=shape, estimator=estimator,
    )  # fmt: skip


def _check_output(settings: PruneSettings, out: Path) -> None:
    model = Path(settings.model).expanduser()
    texts = [Path(text) for text in (settings.calibration, settings.evaluation) if text]  # or presets, hub data sets
    inputs = {f"the text {path.name!r}": path for path in texts if path.is_file()}
    inputs |= {"the run directory": settings.run_dir} if settings.run_dir else {}
    check_output(out, force=settings.force, inputs=inputs, model=model if model.is_dir() else None)


def new_biases(binding: Binding, compensation: Compensation, pruned: tuple[str, ...]) -> tuple[str, ...]:
    """Readers that get a bias they do not have."""
    if not compensation.needs_bias_slot:
        return ()
    readers = {name for axis in pruned for name in binding.readers(axis)}
    return tuple(sorted(n for n in readers if n.removesuffix(".weight") + ".bias" not in binding.layer))


def written(job: Job) -> int:
    """Bytes of the result's weights, as the budget wants them."""
    width = job.source.dtype(job.binding.layer_name(0, next(iter(job.binding.layer)))).itemsize
    return job.source.num_bytes - job.budget * width


def _scope(settings: PruneSettings, binding: Binding, compensation: Compensation) -> Scope:
    protected = parse_layers(settings.protect or "", binding.num_layers)
    if len(protected) == binding.num_layers:
        raise UserError(
            f"--protect {settings.protect!r} protects all {binding.num_layers} layers: nothing could leave. Name fewer."
        )
    pruned = tuple(a for a in settings.axes if a in binding.prunable)
    if "ffn" in pruned and settings.round_to >= (width := binding.sizes["ffn"]):
        raise UserError(
            f"--round-to {settings.round_to} was given, but an MLP of this model has {width} channels: none could leave. Give a "
            f"number below {width}, or prune other --axes."
        )
    if "group" in settings.axes and "group" not in pruned:
        raise UserError(
            f"--axes group was given, but this {binding.model_type} model has one query head per kv head. Use --axes kv,ffn."
        )
    if "kv" in pruned and "group" in pruned:
        raise UserError(
            "--axes kv,group would prune the same heads twice. Give one of them, and ffn if MLP channels may leave too."
        )
    if settings.stock and not accepts_ffn(binding):
        pruned = tuple(a for a in pruned if a != "ffn")
    added = new_biases(binding, compensation, pruned)
    heads = accepted_heads(binding, added) if settings.stock else None
    scope = Scope.of(binding, pruned=pruned, protected=protected, round_to=settings.round_to, heads=heads)
    if not scope.axes:
        asked, able = ",".join(settings.axes), ",".join(binding.prunable) or "none"
        held = ", and a stock checkpoint can hold no fewer of them" if settings.stock else ""
        raise UserError(
            f"nothing of this {binding.model_type} model can leave along --axes {asked}: axes with more than one unit are {able}"
            f"{held}. Give other --axes{', or drop --stock' if settings.stock else ''}."
        )
    return scope


def _budget(settings: PruneSettings, source: Checkpoint, scope: Scope, added: tuple[str, ...]) -> int:
    """Parameters that must leave, from the ratio or the target; a target is met although the biases `added` arrive."""
    binding = source.binding
    block = plans.parameters(binding.layer.values(), binding.sizes) * binding.num_layers
    if settings.ratio is not None:
        return round(settings.ratio * block)
    total, size = source.num_parameters, source.num_bytes
    if settings.target_params is not None:
        leave, what = total - parse_count(settings.target_params), f"--target-params {settings.target_params}"
        has = f"{total:,} parameters"
    else:
        assert settings.target_size is not None
        per = sum(source.dtype(binding.layer_name(0, n)).itemsize for n in binding.layer) / len(binding.layer)
        leave, what = round((size - parse_bytes(settings.target_size)) / per), f"--target-size {settings.target_size}"
        has = f"{spell_bytes(size)} of weights"
    if leave <= 0:
        raise UserError(f"{what}: the model has {has} already. Give a smaller target.")
    leave += _arriving(binding, scope, added, leave)
    if leave >= block:
        raise UserError(
            f"{what}: {leave:,} parameters would have to leave, and the layers have {block:,} in all; embedding and head stay. "
            f"Give a larger target."
        )
    return leave


def _arriving(binding: Binding, scope: Scope, added: tuple[str, ...], leave: int) -> int:
    """Parameters of new biases in the whole stack, at the widths that are left when `leave` parameters leave."""
    block = plans.parameters(binding.layer.values(), binding.sizes) * binding.num_layers
    if not added or leave >= block:
        return 0
    layer = bind(with_biases(binding, added)).layer
    sizes = layer_sizes(binding, counts(binding, scope, Uniform(), leave))
    return sum(plans.parameters((layer[n] for n in layer.keys() - binding.layer.keys()), s) for s in sizes)


def plan_settings(settings: PruneSettings) -> dict[str, Any]:
    """What the plan depends on, and nothing that differs between two machines."""
    chosen = settings.to_json()
    for name in (
        "model", "out", "run_dir", "resume", "force", "dry_run", "max_memory", "trust_remote_code", "calibration", "evaluation",
    ):  # fmt: skip  # what was calibrated on is told by the fingerprint of its blocks
        chosen.pop(name)
    return chosen
