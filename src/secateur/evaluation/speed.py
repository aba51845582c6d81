"""How long models take: runs of one after the other, in turns, so that what slows the machine slows them all."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.streaming.memory import peak

MOST = 40
"""Times as many rounds as were asked for, at most."""
SURE = 0.01
"""Half the interval in which a ratio's median lies, over the ratio: what is exact enough."""
Track = Callable[[Iterable[int], int], Iterator[int]]


class Cell(NamedTuple):
    """One shape of a batch."""

    batch: int
    seq_len: int


class Spread(NamedTuple):
    """What a number was over the runs. `low` and `high`: between them lies the median of all runs that could be, in 95 of 100
    cases, whatever the distribution: order statistics, by the normal approximation of the binomial. Of fewer than six runs these
    are the least and the most."""

    median: float
    least: float
    most: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        ordered = sorted(values)
        out = max(int((len(ordered) - 1.96 * sqrt(len(ordered))) / 2), 0)  # values left out at each end
        return cls(median(ordered), ordered[0], ordered[-1], ordered[out], ordered[-1 - out])

    @property
    def sure(self) -> bool:
        return self.high - self.low <= 2 * SURE * self.median


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each run, by the model's name; the same place in two lists is the same tokens, one right after the other."""

    cell: Cell
    prefill: Mapping[str, list[float]]
    """One forward pass without a cache."""
    decode: Mapping[str, list[float]]
    """All steps after the first pass, one token at a time for each sequence; empty where no token was to be decoded."""

    def speedup(self, phase: str, name: str, base: str) -> Spread:
        """How many times as fast as `base`: of paired runs."""
        seconds = getattr(self, phase)
        return Spread.of([slow / fast for slow, fast in zip(seconds[base], seconds[name], strict=True)])

    def rows(self, new_tokens: int) -> Iterator[dict[str, Any]]:
        """One for each phase and model, for a JSON object; `each` are the seconds of the runs."""
        batch, seq_len = self.cell
        base = next(iter(self.prefill))
        for phase, tokens in (("prefill", batch * seq_len), ("decode", batch * new_tokens)):
            for name, runs in getattr(self, phase).items():
                took = Spread.of(runs)
                row = {
                    "batch": batch, "seq_len": seq_len, "phase": phase, "model": name, "runs": len(runs), "each": list(runs),
                    "seconds": took.median, "seconds_least": took.least, "seconds_most": took.most,
                    "tokens_per_second": tokens / took.median, "tokens_per_second_least": tokens / took.most,
                    "tokens_per_second_most": tokens / took.least,
                }  # fmt: skip
                speedup = {} if name == base else self.speedup(phase, name, base)._asdict()
                yield row | {"speedup" if part == "median" else f"speedup_{part}": value for part, value in speedup.items()}

    @property
    def sure(self) -> bool:
        """Is every speedup over the first model known well enough?"""
        base, *others = self.prefill
        phases = ("prefill", "decode") if self.decode else ("prefill",)
        return all(self.speedup(phase, name, base).sure for phase in phases for name in others)


def compare_speed(
    models: Mapping[str, Any],
    cell: Cell,
    *,
    vocab: int,
    runs: int,
    new_tokens: int,
    seed: int,
    track: Track | None = None,
    least_seconds: float = 0.0,
    most_seconds: float = 0.0,
) -> Times:
    """Time the models on fresh random ids each round, after one that does not count; who begins changes with each round.

    `runs` rounds are followed by more, `MOST` times as many at most: until all took `least_seconds`, since the shorter a run, the
    more one is unlike another; and from there until every speedup over the first model is known within `SURE`, or all took
    `most_seconds`.
    """
    generator = torch.Generator().manual_seed(seed)
    names = list(models)
    decode: dict[str, list[float]] = {name: [] for name in names} if new_tokens else {}
    times = Times(cell=cell, prefill={name: [] for name in names}, decode=decode)
    start = time.perf_counter()

    def rounds() -> Iterator[int]:
        yield from range(-1, runs)
        for number in range(runs, MOST * runs):
            took = time.perf_counter() - start
            if took >= max(least_seconds, most_seconds) or (took >= least_seconds and times.sure):
                return
            yield number

    for number in track(rounds(), runs + 1) if track else rounds():
        ids = torch.randint(vocab, tuple(cell), generator=generator)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            first, rest = time_once(models[name], ids, new_tokens)
            if number >= 0:
                times.prefill[name].append(first)
                if new_tokens:
                    times.decode[name].append(rest)
    return times


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
