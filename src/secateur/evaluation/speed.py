"""How long models take: runs of one after the other, in turns, so that what slows the machine slows them all."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.streaming.memory import peak

MOST = 10
Track = Callable[[Iterable[int], int], Iterator[int]]


class Cell(NamedTuple):
    """One shape of a batch."""

    batch: int
    seq_len: int


class Spread(NamedTuple):
    """What a number was over the runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each run, by the model's name; the same place in two lists is the same tokens, one right after the other."""

    cell: Cell
    prefill: Mapping[str, Sequence[float]]
    """One forward pass without a cache."""
    decode: Mapping[str, Sequence[float]]
    """All steps after the first pass, one token at a time for each sequence; empty where no token was to be decoded."""

    def speedup(self, phase: str, name: str, base: str) -> Spread:
        """How many times as fast as `base`: of paired runs."""
        seconds = getattr(self, phase)
        return Spread.of([slow / fast for slow, fast in zip(seconds[base], seconds[name], strict=True)])


def compare_speed(
    models: Mapping[str, Any],
    cell: Cell,
    *,
    vocab: int,
    runs: int,
    new_tokens: int,
    seed: int,
    track: Track | None = None,
    seconds: float = 0.0,
) -> Times:
    """Time the models on fresh random ids each run, after one run that does not count; who begins changes with each run.

    Runs that took less than `seconds` together are followed by more, `MOST` times as many as were asked for at most: the shorter
    a run, the more one is unlike another.
    """
    generator = torch.Generator().manual_seed(seed)
    names = list(models)
    prefill: dict[str, list[float]] = {name: [] for name in names}
    decode: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    rounds = chain(range(-1, runs), takewhile(lambda _: time.perf_counter() - start < seconds, range(runs, MOST * runs)))
    for number in track(rounds, runs + 1) if track else rounds:
        ids = torch.randint(vocab, tuple(cell), generator=generator)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            first, rest = time_once(models[name], ids, new_tokens)
            if number >= 0:
                prefill[name].append(first)
                if new_tokens:
                    decode[name].append(rest)
    return Times(cell=cell, prefill=prefill, decode=decode if new_tokens else {})


@torch.no_grad()
def time_once(model: Any, ids: Int[Tensor, "batch token"], new_tokens: int) -> tuple[float, float]:
    """Seconds of one pass over the batch, and of `new_tokens` greedy steps after another pass that fills the cache."""
    ids = ids.to(model.device)
    start = _now(ids)
    model(ids, use_cache=False)
    prefill = _now(ids) - start
    if not new_tokens:
        return prefill, 0.0
    out = model(ids, use_cache=True)
    cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
    del out
    start = _now(ids)
    for _ in range(new_tokens):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return prefill, _now(ids) - start


def _now(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


class PeakMemory:
    """The largest memory of this process since `restart`: resident, or the CUDA device's where the work is done there.

    Linux forgets the peak when asked; where it cannot be, `whole_process` is true and the peak is that of the process, loading
    included. `ru_maxrss` does not do on Linux: a process inherits the peak of the one that started it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.whole_process = False

    def restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.whole_process = True

    def read(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            status = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            return peak()
