"""What the efforts cost on a LLaMA-2-7B-shaped checkpoint of random weights (`seven_b.py make` writes one).

    python benchmarks/seven_b_effort.py fast DIR [--tokens 16384]     `--effort fast` against Wanda-sp with its second run, paired
    python benchmarks/seven_b_effort.py refit DIR [--tokens 1024]     sequential least squares: seconds and peak memory
    python benchmarks/seven_b_effort.py memory DIR [--tokens 1024]    statistics and least squares of `--effort fast`: peak memory

Each prints one JSON object. Memory is `ru_maxrss` of this process, so run every measurement in a process of its own.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from seven_b import HIDDEN, opened, tokens

from secateur import axes
from secateur.allocation import ALLOCATORS
from secateur.allocation.choose import Scope, counts, kept_layers, score
from secateur.criteria import CRITERIA
from secateur.plan import Plan, parameters
from secateur.statistics.moments import MomentsAccumulator
from secateur.streaming.collect import Request, Store, by_type, collect
from secateur.streaming.heap import steady_heap
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.memory import peak
from secateur.streaming.source import read_layer
from secateur.streaming.template import run_layer
from secateur.surgery.compensate import LeastSquares
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.refit import Refit, Rewritten
from secateur.surgery.sequential import Sequential

AXES = ("kv", "ffn")
RATIO = 0.4


def planned(source: Any, scores: Any) -> Plan:
    binding = source.binding
    scope = Scope.of(binding, pruned=AXES, protected=(), round_to=1, heads=None)
    budget = round(RATIO * parameters(binding.layer.values(), binding.sizes) * binding.num_layers)
    layers = kept_layers(binding, scope, scores, counts(binding, scope, ALLOCATORS.create("uniform"), budget, scores))
    return Plan(model_type="llama", fingerprint="", sizes=dict(binding.sizes), layers=layers)


def scored(source: Any, seen: Any, method: str) -> Any:
    scope = Scope.of(source.binding, pruned=AXES, protected=(), round_to=1, heads=None)
    return dict(score(source, scope, CRITERIA.create(method), seen, standardised=False, seed=0))


def wanda(source: Any, walk: Any, ids: torch.Tensor) -> float:
    """Wanda-sp as its authors run it: each layer gathers, is pruned, and runs again for the next one's inputs."""
    binding = source.binding
    hidden, behind = (HiddenStates((*ids.shape, HIDDEN), walk.dtype) for _ in range(2))  # type: ignore[arg-type]
    walk.start(ids, hidden)
    start = time.perf_counter()
    half = {"kv": binding.sizes["kv"] * 6 // 10, "ffn": binding.sizes["ffn"] * 6 // 10}
    with torch.no_grad():
        for number in range(binding.num_layers):
            module, weights = walk.module(number), read_layer(source, number)
            sums = {m: MomentsAccumulator(w) for m, w in (("self_attn.o_proj", HIDDEN), ("mlp.down_proj", 11008))}
            handles = [
                module.get_submodule(m).register_forward_pre_hook(lambda _, args, a=a: a.update(args[0].flatten(0, -2)))
                for m, a in sums.items()
            ]
            for a, b in walk.batches(ids.shape):
                run_layer(binding, module, weights, hidden.get(a, b), walk.call(number, b - a))
            for handle in handles:
                handle.remove()
            kept = {}
            for axis, m in (("kv", "self_attn.o_proj"), ("ffn", "mlp.down_proj")):
                size = weights[f"{m}.weight"].float().abs().mean(0) * sums[m].result().second_moment.sqrt()
                best = size.view(binding.sizes[axis], -1).sum(1).topk(half[axis]).indices
                kept[axis] = tuple(sorted(best.tolist()))
            small = {n: axes.select(w, binding.layer[n], binding.sizes, kept) for n, w in weights.items()}
            resized = walk.template.resized(number, kept)
            for a, b in walk.batches(ids.shape):
                behind.put(a, run_layer(binding, resized, small, hidden.get(a, b), walk.call(number, b - a)))
            hidden, behind = behind, hidden
    return time.perf_counter() - start


def fast(source: Any, walk: Any, ids: torch.Tensor, kinds: set[str], directory: Path) -> tuple[float, float]:
    """(walk with its statistics, scores and least squares of every reader)."""
    store = Store(directory=directory)
    start = time.perf_counter()
    for _ in collect(walk, ids, Request.of(source.binding, AXES, kinds), store):
        pass
    walked = time.perf_counter() - start
    if "gram" not in kinds:
        return walked, 0.0
    start = time.perf_counter()
    plan = planned(source, scored(source, lambda layer, axis: by_type(store.load(layer, kinds={"moments"})), "flap"))
    rebuild = Rebuild(
        source=source, target=source.binding, plan=plan, compensation=LeastSquares(),
        seen=lambda layer, module: by_type(store.load(layer, modules=[module]))[module],
    )  # fmt: skip
    for layer in range(source.binding.num_layers):
        for _ in rebuild.layer(layer):
            pass
    return walked, time.perf_counter() - start


def timed(args: argparse.Namespace) -> dict[str, Any]:
    source, walk = opened(args.directory)
    ids = tokens(args.tokens)
    rows = []
    for _ in range(args.runs):
        with TemporaryDirectory(dir=args.directory.parent) as base:
            (one := Path(base, "moments")).mkdir()
            (two := Path(base, "gram")).mkdir()
            alone, _ = fast(source, walk, ids, {"moments"}, one)
            walked, solved = fast(source, walk, ids, {"moments", "gram"}, two)
        rows.append({"wanda": wanda(source, walk, ids), "walk": alone, "gram": walked - alone, "solve": solved})
    ratios = [(r["walk"] + r["gram"] + r["solve"]) / r["wanda"] for r in rows]
    return {
        "what": "fast",
        "tokens": args.tokens,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "runs": rows,
        "peak_gib": peak() / 2**30,
    }


def memory(args: argparse.Namespace) -> dict[str, Any]:
    source, walk = opened(args.directory)
    with TemporaryDirectory(dir=args.directory.parent) as base:
        seconds = fast(source, walk, tokens(args.tokens), {"moments", "gram"}, Path(base))
    return {"what": "memory", "tokens": args.tokens, "seconds": seconds, "peak_gib": peak() / 2**30}


def refit(args: argparse.Namespace) -> dict[str, Any]:
    source, walk = opened(args.directory)
    plan = planned(source, scored(source, lambda layer, axis: {}, "magnitude"))
    before, start, report = peak(), time.perf_counter(), []
    with TemporaryDirectory(dir=args.directory.parent) as base:
        task = Refit(
            walk=walk, ids=tokens(args.tokens), plan=plan, how=Sequential(), rewritten=Rewritten(directory=Path(base)),
            spill=args.spill, report=report,
        )  # fmt: skip
        layers = [time.perf_counter() - start for _ in task.run()]
    return {
        "what": "refit", "tokens": args.tokens, "layers": layers, "before_gib": before / 2**30, "peak_gib": peak() / 2**30,
        "ridges": [note["ridge"] for note in report],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run, many in (("fast", timed, 16_384), ("refit", refit, 1024), ("memory", memory, 1024)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("directory", type=Path)
        command.add_argument("--tokens", type=int, default=many)
        if name == "fast":
            command.add_argument("--runs", type=int, default=3)
        if name == "refit":
            command.add_argument("--spill", action="store_true")
    args = parser.parse_args()
    steady_heap()
    print(json.dumps(args.run(args)))


if __name__ == "__main__":
    main()
