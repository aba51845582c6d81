"""Methods of pruning compared with least squares: perplexity of one model at several ratios, in the mean of several draws.

    python benchmarks/sensitivity_trial.py MODEL --calibration TEXT [--evaluation TEXT] [--methods flap,sensitivity:damping=0.1]
        [--allocations 'uniform;measured:points=3'] [--ratios 0.2,0.4,0.5] [--draws 3] [--compensate least-squares] [--out FILE]

Every reader's statistics are those of the dense model; exact gradients. The pruned model is evaluated as the original shapes hold
it: removed units zero, readers compensated. Prints a Markdown table and writes JSON with --out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from secateur import plan as plans
from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import TryingAllocator
from secateur.allocation.choose import Scope, counts, kept_layers, ladders, score
from secateur.calibration.blocks import draw_blocks, windows
from secateur.calibration.text import read_texts
from secateur.calibration.tokens import load_tokenizer, tokenise
from secateur.criteria import CRITERIA
from secateur.criteria.criterion import Criterion
from secateur.evaluation.perplexity import measure
from secateur.gradients.backprop import Backprop
from secateur.gradients.estimator import Task, gradient_request
from secateur.plan import Plan
from secateur.recipes.opening import open_model
from secateur.recipes.trials import BlockTrials
from secateur.reporter import Quiet
from secateur.runs import RunDirectory
from secateur.streaming.collect import Request, Store, by_type, collect
from secateur.streaming.walk import Walk
from secateur.surgery.compensations import COMPENSATIONS
from secateur.surgery.rebuild import Rebuild, masked
from secateur.surgery.trial import Trial as ReaderTrial

GRADIENTS = ("gate-gradient", "weight-gradient", "output-gradient-gram")
AXES = ("kv", "ffn")


class Masked:
    """A source whose readers are replaced."""

    def __init__(self, source: Any, replaced: dict[str, torch.Tensor]) -> None:
        self.source, self.replaced = source, replaced

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.replaced[name] if name in self.replaced else self.source.read(name, out)


class Trial:
    """One model, one draw: its statistics, and the perplexity of whatever is chosen by them."""

    def __init__(self, model: str, calibration: str, evaluation: str | None, directory: Path, seed: int) -> None:
        self.run = RunDirectory(path=directory)
        self.source, _ = open_model(model, dtype="fp32", device="cpu", trust_remote_code=False)
        texts, tokenizer = read_texts(calibration, evaluation), load_tokenizer(self.source.directory)
        ids = self.ids = draw_blocks(tokenise(texts[0], tokenizer), samples=128, seq_len=128, seed=seed).ids
        self.held = windows(tokenise(texts[1], tokenizer), seq_len=128, max_tokens=32_768).ids
        self.binding, self.seed = self.source.binding, seed
        self.scope = Scope.of(self.binding, pruned=AXES, protected=(), round_to=1, heads=None)
        store = Store(directory=directory)
        directory.mkdir(parents=True, exist_ok=True)
        [*collect(self.walk(self.source), ids, Request.of(self.binding, AXES, ("moments", "gram")), store)]
        request = gradient_request(self.binding, AXES, GRADIENTS)
        task = Task(walk=self.walk(self.source), ids=ids, axes=AXES, request=request, store=store)
        if not all(store.has(i, request) for i in range(self.binding.num_layers)):
            [*Backprop().estimate(task)]
        self.seen = [by_type(store.load(i)) for i in range(self.binding.num_layers)]
        self.block = plans.parameters(self.binding.layer.values(), self.binding.sizes) * self.binding.num_layers

    def walk(self, source: Any) -> Walk:
        return Walk.over(source, device=torch.device("cpu"), dtype=torch.float32, tokens=4096)

    def dense(self) -> float:
        return measure(self.walk(self.source), self.held).perplexity

    def scores(self, criterion: Criterion, *, standardised: bool) -> dict[Any, Any]:
        return dict(
            score(
                self.source, self.scope, criterion, lambda layer, axis: self.seen[layer],
                standardised=standardised, seed=self.seed,
            )
        )  # fmt: skip

    def perplexity(
        self, scores: dict[Any, Any], allocation: str, ratio: float, compensate: str, *, comparable: bool = False
    ) -> float:
        """`comparable`: the scores are predicted losses, which matters to the allocations that measure."""
        allocator, budget = ALLOCATORS.spelled(allocation), round(ratio * self.block)
        if isinstance(allocator, TryingAllocator):
            trials = BlockTrials(
                walk=self.walk(self.source), ids=self.ids, comparable=comparable, report=Quiet(), run=self.run,
                trial=reader_trial(self, scores, compensate),
            )  # fmt: skip
            kept = allocator.decide(ladders(self.binding, self.scope, scores), budget, trials)
        else:
            kept = counts(self.binding, self.scope, allocator, budget, scores)
        return self.measured(kept_layers(self.binding, self.scope, scores, kept), compensate)

    def measured(self, layers: Any, compensate: str) -> float:
        plan = Plan(model_type=self.binding.model_type, fingerprint="", sizes=dict(self.binding.sizes), layers=layers)
        rebuild = Rebuild(
            source=self.source, target=self.binding, plan=plan, compensation=COMPENSATIONS.create(compensate),
            seen=lambda layer, module: self.seen[layer][module],
        )  # fmt: skip
        replaced = {}
        for layer in range(self.binding.num_layers):
            for name, value in masked(rebuild, layer, dict(rebuild.layer(layer))).items():
                replaced[self.binding.layer_name(layer, name)] = value
        return measure(self.walk(Masked(self.source, replaced)), self.held).perplexity


def reader_trial(trial: Trial, scores: dict[Any, Any], compensate: str) -> ReaderTrial:
    return ReaderTrial(
        source=trial.source, target=trial.binding, scores=scores, compensation=COMPENSATIONS.create(compensate),
        seen=lambda layer, module: trial.seen[layer][module],
    )  # fmt: skip


def cells(args: argparse.Namespace, base: Path) -> Iterator[dict[str, Any]]:
    for seed in range(args.draws):
        trial = Trial(args.model, args.calibration, args.evaluation, base / str(seed), seed)
        yield {"method": "dense", "seed": seed, "perplexity": trial.dense()}
        for method, allocation in product(args.methods.split(";"), args.allocations.split(";")):
            criterion = CRITERIA.spelled(method)
            scores = trial.scores(criterion, standardised=ALLOCATORS.spelled(allocation).standardised)
            for ratio in map(float, args.ratios.split(",")):
                found = trial.perplexity(scores, allocation, ratio, args.compensate, comparable=criterion.comparable)
                print(seed, method, allocation, ratio, round(found, 3), file=sys.stderr, flush=True)
                yield {"method": method, "allocation": allocation, "ratio": ratio, "seed": seed, "perplexity": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation")
    parser.add_argument("--methods", default="flap;wanda-sp;sensitivity", help="separated by semicolons")
    parser.add_argument("--allocations", default="uniform;global", help="separated by semicolons")
    parser.add_argument("--ratios", default="0.2,0.4,0.5")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--compensate", default="least-squares")
    parser.add_argument("--statistics", type=Path, help="keep the statistics here, and use those that are here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with TemporaryDirectory() as base:
        found = [*cells(args, args.statistics or Path(base))]
    name, ratios = Path(args.model).name, [float(r) for r in args.ratios.split(",")]
    dense = statistics.mean(c["perplexity"] for c in found if c["method"] == "dense")
    print(f"{name}: dense perplexity {dense:.3f}; {args.draws} draws; torch {torch.__version__}\n")
    print("| method | allocation | " + " | ".join(map(str, ratios)) + " |\n|---|---|" + "---|" * len(ratios))
    for method, allocation in product(args.methods.split(";"), args.allocations.split(";")):
        own = [c for c in found if c["method"] == method and c["allocation"] == allocation]
        means = [statistics.mean(c["perplexity"] for c in own if c["ratio"] == r) for r in ratios]
        print(f"| {method} | {allocation} | {' | '.join(f'{m:.2f}' for m in means)} |")
    if args.out:
        args.out.write_text(json.dumps({"model": name, "compensate": args.compensate, "cells": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
