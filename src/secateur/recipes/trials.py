"""Losses of models that are pruned on trial, for the allocations that measure before they decide."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.allocation.allocator import Counts, Tried, TryingAllocator
from secateur.allocation.choose import Scores, ladders
from secateur.criteria.layer import LayerCriterion
from secateur.export.huggingface import check_disk
from secateur.recipes.job import Job
from secateur.reporter import Reporter
from secateur.runs import RunDirectory
from secateur.streaming.collect import Store, by_type
from secateur.streaming.forks import Forks
from secateur.streaming.memory import SHARE, free
from secateur.streaming.replay import Cache, Replay
from secateur.streaming.source import read_layer, to_device
from secateur.streaming.walk import Walk
from secateur.surgery.trial import Trial


@dataclass(frozen=True, kw_only=True)
class BlockTrials:
    """Trials on the calibration blocks: every second one to search on, the others held out.

    `run`: where rises are remembered, if anywhere. `limit`: bytes that may be held between trials; None: a part of the free memory.
    """

    walk: Walk
    ids: Int[Tensor, "block token"]
    trial: Trial
    comparable: bool
    report: Reporter
    run: RunDirectory | None = None
    limit: int | None = None
    settled: Counts = field(default_factory=dict)

    def rises(self, wanted: Sequence[Tried], blocks: int, base: Counts | None = None) -> dict[Tried, float]:
        """One walk; what was found before with the same units kept is taken from the run directory."""
        ids = self.ids[:blocks]
        around = sorted((*at, n) for at, n in (base or {}).items() if n < self.walk.binding.sizes[at[1]])
        names = {tried: self._name(tried) for tried in wanted}
        key = f"rises with {self.trial.compensation!r} over {len(ids)} blocks in {' '.join(map(self._name, around)) or 'the whole'}"
        known = (self.run.recall(key) if self.run else None) or {}
        missing = [tried for tried in wanted if names[tried] not in known]
        if missing:
            known |= {names[tried]: rise for tried, rise in self._measured(missing, ids, around).items()}
            if self.run:
                self.run.remember(key, known)
        return {tried: known[names[tried]] for tried in wanted}

    def _name(self, tried: Tried) -> str:
        """The layer, and the units that stay in it."""
        layer, axis, count = tried
        if count == self.walk.binding.sizes[axis]:
            return f"{layer} {axis}"
        kept = json.dumps(self.trial.kept(*tried))
        return f"{layer} {hashlib.sha256(kept.encode()).hexdigest()[:16]}"

    def _measured(
        self, wanted: Sequence[Tried], ids: Int[Tensor, "block token"], around: Sequence[Tried]
    ) -> dict[Tried, float]:
        at: dict[int, list[Tried]] = {}
        for tried in wanted:
            at.setdefault(tried[0], []).append(tried)
        states = (1 + len(wanted)) * ids.numel() * self.walk.binding.sizes["hidden"] * self.walk.dtype.itemsize
        directory = self._directory(states) if states > self._bound else None

        def common(number: int) -> dict[str, Tensor]:
            found = [self.trial.readers(*tried) for tried in around if tried[0] == number]
            return {name: value for readers in found for name, value in readers.items()}

        forks = Forks(
            walk=self.walk, ids=ids, at=at, changed=lambda tried: self.trial.readers(*tried), directory=directory, common=common
        )  # fmt: skip
        try:
            for _ in self.report.track(forks.layers(), "measuring layers", self.walk.binding.num_layers):
                pass
            plain, each = forks.losses()
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
        predicted = len(ids) * (ids.shape[1] - 1)
        return {tried: float((losses - plain).sum()) / predicted for tried, losses in each.items()}

    def _directory(self, states: int) -> Path | None:
        if self.run is None:
            return None
        check_disk({self.run.path: 2 * states})  # a boundary is complete before the last one goes
        directory = self.run.path / "forks"
        directory.mkdir(exist_ok=True)
        return directory

    @cached_property
    def _bound(self) -> int:
        return room(self.limit)

    @cached_property
    def _cache(self) -> Cache:
        return Cache(limit=self._bound // 2)

    @cached_property
    def _searched(self) -> Replay:
        return Replay(walk=self.walk, ids=self.ids[::2], limit=self._bound // 2)

    def loss(self, kept: Counts, *, settle: bool = False) -> float:
        changed = [layer for (layer, axis), count in kept.items() if self.settled.get((layer, axis)) != count]
        found = self._searched.loss(
            min(changed, default=self.walk.binding.num_layers), lambda n: self._weights(n, kept), settle=settle
        )  # fmt: skip
        if settle:
            self.settled.clear()
            self.settled.update(kept)
        return found

    def held_out(self, kept: Counts) -> float:
        ids = self.ids[1::2] if len(self.ids) > 1 else self.ids
        return Replay(walk=self.walk, ids=ids, limit=0).loss(0, lambda n: self._weights(n, kept))

    def _weights(self, number: int, kept: Counts) -> Mapping[str, Tensor]:
        whole = self._cache.get(number, lambda: self._moved(read_layer(self.walk.source, number)))
        for (layer, axis), count in kept.items():
            if layer == number and count < self.walk.binding.sizes[axis]:
                tried = (layer, axis, count)
                whole = {**whole, **self._cache.get(tried, lambda tried=tried: self._moved(self.trial.readers(*tried)))}
        return whole

    def _moved(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return to_device(dict(weights), self.walk.device, self.walk.dtype)


def room(limit: int | None) -> int:
    """Bytes that trials may hold."""
    return free() // SHARE if limit is None else limit


def trials_of(job: Job, scores: Scores, store: Store, run: RunDirectory, report: Reporter) -> BlockTrials:
    """What the job's allocation measures with, if it does; nothing runs before it is asked for."""

    def seen(layer: int, module: str) -> Any:
        return by_type(store.load(layer, modules=[module]))[module]

    trial = Trial(source=job.source, target=job.target, scores=scores, compensation=job.trial_compensation, seen=seen)
    assert not isinstance(job.criterion, LayerCriterion), "whole layers have no allocation"
    walk = Walk.over(job.source, device=job.device, dtype=job.dtype, tokens=job.fit_trials.tokens)
    return BlockTrials(
        walk=walk, ids=job.blocks[0].ids, trial=trial, comparable=job.criterion.comparable, report=report, run=run, limit=_spare(job)
    )  # fmt: skip


def _spare(job: Job) -> int | None:
    return None if job.limit is None else max(job.limit - job.fit_trials.peak, 0)


def spilled(job: Job) -> int:
    """Bytes of hidden states on disk while an allocation measures."""
    if not isinstance(job.allocator, TryingAllocator):
        return 0
    blocks, *rest = job.hidden_shape
    streams = job.allocator.streams(ladders(job.binding, job.scope, None))
    states = streams * min(blocks, job.allocator.blocks) * torch.Size(rest).numel() * job.dtype.itemsize
    return 2 * states if states > room(_spare(job)) else 0
