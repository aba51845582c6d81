"""What a job would take and give, from headers and tables alone."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from secateur import axes
from secateur.allocation.allocator import Allocator, TryingAllocator
from secateur.allocation.choose import counts, ladders, layer_sizes
from secateur.allocation.uniform import Uniform
from secateur.export.huggingface import disk_free
from secateur.plan import parameters
from secateur.recipes.differentiate import disk_of_gradients
from secateur.recipes.flops import flops_per_token
from secateur.recipes.job import Job
from secateur.recipes.scoring import scoring_flops
from secateur.recipes.trials import spilled
from secateur.streaming.collect import disk_of, memory_of
from secateur.surgery.compensate import LeastSquares
from secateur.surgery.sequential import Sequential

OVERHEAD = 0.75  # share of the matrix products' rate that a walk reaches (docs/benchmarks.md)
HEAD_TOKENS = 512
REFITS = 4  # runs of a layer while it is refitted, most of them whole
FACTORS = 5  # ridges that are tried for a matrix, and the one that is taken


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted; memory and time are estimates. `flops_per_token` counts two for each weight of a matrix that is multiplied."""

    model: str
    method: str
    compensate: str
    allocation: str | None
    ratio: float
    ratio_reached: float
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    flops_per_token_before: int
    flops_per_token_after: int
    widths: str
    stock: bool
    notes: tuple[str, ...]
    walks: int
    peak_memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def forecast(job: Job) -> Forecast:
    """Widths are exact for the uniform allocations and for whole layers, and the mean for others."""
    binding, source = job.binding, job.source
    expected = job.allocator if isinstance(job.allocator, Allocator) and not job.allocator.standardised else Uniform()
    kept = {} if job.leaving else counts(binding, job.scope, expected, job.budget)
    sizes = layer_sizes(binding, kept)[job.leaving :]
    left = sum(parameters(binding.layer.values(), s) for s in sizes)
    gone = job.block_parameters - sum(parameters(job.target.layer.values(), s) for s in sizes)
    width = source.dtype(binding.layer_name(0, next(iter(binding.layer)))).itemsize
    walks = int(bool(job.request.kinds)) + (0 if job.settings.evaluation == "none" else 2)
    refits = isinstance(job.compensation, Sequential)
    walks += refits
    forwards, backwards = job.estimator.passes() if job.estimator else (0, 0)
    walks += forwards + backwards
    tried, more, limit = _trying(job)
    walks += tried
    tokens = job.settings.samples * job.settings.seq_len
    solve = _solving(job, kept)
    names = " x ".join(f"{axis} {kept[job.scope.layers[0], axis]} of {binding.sizes[axis]}" for axis in job.scope.axes)
    names = names or f"layers {len(sizes)} of {binding.num_layers}"
    hidden = 2 * tokens * binding.sizes["hidden"] * job.dtype.itemsize
    out = source.num_bytes - gone * width
    dense = [binding.sizes] * binding.num_layers
    seconds = (
        tokens
        * flops_per_token(binding, dense, head=False)
        * max(walks - tried + more + backwards, 1)
        / (_rate(job, job.dtype) * OVERHEAD)
    )
    seconds += _compensating(job, kept, tokens) + limit
    seconds += scoring_flops(job) / _rate(job, torch.float32)
    if refits:
        seconds += _refitting(job, sizes, tokens)
    return Forecast(
        model=job.settings.model, method=job.settings.method or "", compensate=job.compensation.name,
        allocation=None if job.leaving else job.allocator.name,
        ratio=job.budget / job.block_parameters, ratio_reached=1 - left / job.block_parameters, parameters_before=source.num_parameters,
        parameters_after=source.num_parameters - gone, bytes_before=source.num_bytes, bytes_after=out,
        flops_per_token_before=flops_per_token(binding, dense), flops_per_token_after=flops_per_token(binding, sizes),
        widths=names, stock=job.shape.stock, notes=job.shape.notes + job.shape.reasons, walks=walks,
        peak_memory_bytes=max(job.peak, job.fit.peak - memory_of(job.request, binding) + solve),
        disk_bytes=out + disk_of(job.request, binding) + hidden + (disk_of_gradients(job) if job.estimator else 0)
        + spilled(job) + (out + hidden if refits else 0),
        disk_free_bytes=disk_free(job.runs), seconds=seconds,
    )  # fmt: skip


def _trying(job: Job) -> tuple[int, float, float]:
    """(walks, forward passes they are worth, seconds of a time limit) that an allocation takes which measures."""
    if not isinstance(job.allocator, TryingAllocator):
        return 0, 0.0, 0.0
    passes = job.allocator.passes(ladders(job.binding, job.scope, None), job.binding.num_layers, job.settings.samples)
    return job.allocator.walks, passes, job.allocator.time_limit


def _solving(job: Job, kept: Mapping[Any, int]) -> int:
    """Bytes of the largest least-squares problem: its Gram matrix, the factor, and two right-hand sides in float64."""
    if not isinstance(job.compensation, LeastSquares):
        return 0
    problems = _readers(job, kept, job.scope.layers[0])
    return max(4 * width**2 + 8 * stays**2 + 16 * stays * job.binding.sizes["hidden"] for width, stays in problems)


def _compensating(job: Job, kept: Mapping[Any, int], tokens: int) -> float:
    """Seconds for the Gram matrices (float32, half of each) and for the factorisations (float64, at half the rate)."""
    if not isinstance(job.compensation, LeastSquares):
        return 0.0
    flops = 0.0
    for layer in job.scope.layers:
        for width, stays in _readers(job, kept, layer):
            flops += tokens * width**2 + 2 * (stays**3 / 3 + 4 * job.binding.sizes["hidden"] * stays**2)
    return flops / _rate(job, torch.float32)


def _refitting(job: Job, sizes: Sequence[Mapping[str, int]], tokens: int) -> float:
    """Seconds of the runs of both models' layers (`REFITS` of each) and of the regressions, some `FACTORS` for each stage."""
    binding = job.binding
    dense = flops_per_token(binding, [binding.sizes] * binding.num_layers, head=False)
    runs = REFITS * tokens * (dense + flops_per_token(binding, sizes, head=False)) / (_rate(job, job.dtype) * OVERHEAD)
    flops = 0.0
    for spec in binding.layer.values():
        if len(spec.dims) == 2:
            high, wide = axes.shape(spec, sizes[job.scope.layers[0]])[:: 1 if 1 in spec.inputs else -1]
            flops += 2 * tokens * wide * high + FACTORS * 2 * (wide**3 / 3 + 3 * high * wide**2)
    return runs + flops * binding.num_layers / _rate(job, torch.float32)


def _readers(job: Job, kept: Mapping[Any, int], layer: int) -> Iterator[tuple[int, int]]:
    """(channels now, channels that stay) of every reader of a layer."""
    for axis in job.scope.axes:
        for name in job.binding.readers(axis):
            width = job.request.channels(job.binding, name.removesuffix(".weight"))
            yield width, width * kept[layer, axis] // job.binding.sizes[axis]


def _rate(job: Job, dtype: torch.dtype) -> float:
    """FLOP per second of this machine's matrix product at the model's width, measured for a fifth of a second."""
    hidden, wide = job.binding.sizes["hidden"], job.binding.sizes["ffn"]
    x = torch.ones(HEAD_TOKENS, hidden, dtype=dtype, device=job.device)
    w = torch.ones(wide, hidden, dtype=dtype, device=job.device)
    torch.nn.functional.linear(x, w)
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        torch.nn.functional.linear(x, w)
        if job.device.type == "cuda":
            torch.cuda.synchronize(job.device)
        rounds += 1
    return rounds * 2 * HEAD_TOKENS * hidden * wide / (time.perf_counter() - start)
