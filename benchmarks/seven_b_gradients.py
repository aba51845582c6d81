"""Memory and time of gradients on a LLaMA-2-7B-shaped checkpoint of random weights (`seven_b.py make` writes one).

    python benchmarks/seven_b_gradients.py memory DIR gate-gradient [--gradient backprop] [--spill]   1,024 tokens, peak of the process
    python benchmarks/seven_b_gradients.py memory DIR sensitivity       Gram and output gradients, and the scores made of them
    python benchmarks/seven_b_gradients.py time DIR gate-gradient       the walk back over the walk forward, paired

Each prints one JSON object. Memory is `ru_maxrss` of this process, so run every measurement in a process of its own.
"""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from seven_b import HIDDEN, opened, tokens

from secateur.gradients import ESTIMATORS
from secateur.gradients.backprop import LayerTaps
from secateur.gradients.estimator import Task, gradient_request
from secateur.streaming.backward import forward_for_back, walk_back
from secateur.streaming.boundaries import Boundaries
from secateur.streaming.collect import Request, Store, by_type, collect
from secateur.streaming.heap import steady_heap
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.loss import head_gradient
from secateur.streaming.memory import peak

AXES = ("kv", "ffn")


def memory(args: argparse.Namespace) -> dict:
    source, walk = opened(args.directory)
    kinds = {"output-gradient-gram", "gate-gradient"} if args.what == "sensitivity" else {args.what}
    ids, start = tokens(1024), time.perf_counter()
    with TemporaryDirectory(dir=args.directory.parent) as run:
        store = Store(directory=Path(run))
        if args.what == "sensitivity":
            for _ in collect(walk, ids, Request.of(source.binding, AXES, {"gram"}), store):
                pass
        gathered = peak()
        estimator = ESTIMATORS.spelled(args.gradient)
        request = gradient_request(source.binding, AXES, kinds)
        task = Task(walk=walk, ids=ids, axes=AXES, request=request, store=store, spill=args.spill)
        for _ in estimator.estimate(task):
            pass
        estimated = peak()
        if args.what == "sensitivity":
            scored(source, store)
    return {
        "what": args.what, "gradient": args.gradient, "layers": source.binding.num_layers, "spill": args.spill,
        "seconds": round(time.perf_counter() - start, 1), "forward_gib": gathered / 2**30, "gradient_gib": estimated / 2**30,
        "peak_gib": peak() / 2**30,
    }  # fmt: skip


def scored(source, store: Store) -> None:
    """Scores of one layer; every layer takes the same."""
    from secateur.allocation.choose import Scope, score
    from secateur.criteria import CRITERIA

    scope = Scope.of(source.binding, pruned=AXES, protected=range(1, source.binding.num_layers), round_to=1, heads=None)
    places = {"kv": "self_attn.o_proj", "ffn": "mlp.down_proj"}
    seen = lambda layer, axis: by_type(store.load(layer, modules=[axis, places[axis]]))  # noqa: E731
    for _ in score(source, scope, CRITERIA.create("sensitivity"), seen, standardised=False, seed=0):
        pass


def timed(args: argparse.Namespace) -> dict:
    """The walk back with its statistics, against the walk forward that keeps the boundaries."""
    source, walk = opened(args.directory)
    ids, layers = tokens(args.tokens), source.binding.num_layers
    request = gradient_request(source.binding, AXES, {args.what})

    def once() -> tuple[float, float]:
        with TemporaryDirectory(dir=args.directory.parent) as run:
            store, boundaries, shape = Store(directory=Path(run)), Boundaries(None, spill=False), (*ids.shape, HIDDEN)
            hidden = HiddenStates(shape, walk.dtype)  # type: ignore[arg-type]
            start = time.perf_counter()
            for _ in forward_for_back(walk, ids, hidden, boundaries, layers=layers):
                pass
            forward = time.perf_counter() - start
            gradient = HiddenStates(shape, walk.dtype)  # type: ignore[arg-type]
            for at, piece, _ in head_gradient(walk, ids, lambda a, b: boundaries.get(layers, a, b)):
                gradient.put(at, piece)
            taps = LayerTaps(Task(walk=walk, ids=ids, axes=AXES, request=request, store=store), ExitStack())
            start = time.perf_counter()
            for number in walk_back(walk, boundaries, gradient, taps.taps, first=layers - 1):
                store.save(number, taps.result(number))
            return forward, time.perf_counter() - start

    once()
    pairs = [once() for _ in range(args.runs)]
    ratios = [back / forward for forward, back in pairs]
    return {
        "what": args.what, "layers": layers, "tokens": args.tokens, "ratio": statistics.median(ratios), "ratios": ratios,
        "forward_s": [f for f, _ in pairs], "back_s": [b for _, b in pairs],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("memory", memory), ("time", timed)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("directory", type=Path)
        command.add_argument(
            "what", choices=["gate-gradient", "weight-gradient", "weight-fisher", "output-gradient-gram", "sensitivity"]
        )
        if name == "memory":
            command.add_argument("--gradient", default="backprop")
            command.add_argument("--spill", action="store_true")
        else:
            command.add_argument("--tokens", type=int, default=4096)
            command.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    steady_heap()
    print(json.dumps(args.run(args)))


if __name__ == "__main__":
    main()
