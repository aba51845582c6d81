"""Products with the kept rows of a matrix on a CUDA device: the Triton kernel against copying the rows and multiplying.

    python benchmarks/rows_kernel.py [--dtype bfloat16] [--ratio 0.4] [--hidden 4096] [--ffn 11008] [--tokens 16,512,2560,20480]
                                     [--runs 20] [--tile TOKENSxOUTPUTSxINPUTSxWARPSxSTAGES]

Both sides of an MLP: `to` (gate, up) and `from` (down). Each run draws new rows and inputs and has each way once, in turn, timed by
events after a warm-up; `dense` is the whole product, `compact` that with rows copied before. Prints one JSON object for each shape:
medians in milliseconds, the median of the paired ratios, and the largest difference over the largest value.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from secateur.runtime import rows_eager, rows_triton


def timed(run: Callable[[], torch.Tensor], cold: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Milliseconds, with nothing of the operands in the cache."""
    cold.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), result


def ways(side: str, tokens: int, args: argparse.Namespace, weight: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    kept = round(args.ffn * (1 - args.ratio))
    index = torch.randperm(args.ffn, device="cuda")[:kept].sort().values
    draw = {"dtype": weight.dtype, "device": "cuda"}
    x = torch.randn(tokens, args.hidden if side == "to" else kept, **draw)
    whole = x if side == "to" else torch.randn(tokens, args.ffn, **draw)
    small, place = weight.index_select(0, index), torch.empty(kept, args.hidden, **draw)
    kernel, eager = (rows_triton.to_rows, rows_eager.to_rows) if side == "to" else (rows_triton.from_rows, rows_eager.from_rows)

    def multiply(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, matrix if side == "to" else matrix.mT)

    def copied() -> torch.Tensor:  # into a place that is there, as the runtime does
        torch.index_select(weight, 0, index, out=place)
        return multiply(x, place)

    return {
        "kernel": lambda: kernel(x, weight, index, None, args.tile), "copied": copied,
        "eager": lambda: eager(x, weight, index), "compact": lambda: multiply(x, small), "dense": lambda: multiply(whole, weight),
    }  # fmt: skip


@torch.inference_mode()
def compared(side: str, tokens: int, args: argparse.Namespace, weight: torch.Tensor, cold: torch.Tensor) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    worst = 0.0
    for number in range(args.runs + 3):
        results = {}
        for name, run in ways(side, tokens, args, weight).items():
            milliseconds, results[name] = timed(run, cold)
            if number >= 3:
                times.setdefault(name, []).append(milliseconds)
        difference = (results["kernel"].float() - results["copied"].float()).abs().max()
        worst = max(worst, float(difference / results["copied"].float().abs().max()))
    over = {name: [t / k for t, k in zip(values, times["kernel"], strict=True)] for name, values in times.items()}
    return {
        "side": side, "tokens": tokens, "dtype": args.dtype, "hidden": args.hidden, "ffn": args.ffn, "ratio": args.ratio,
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": rows_triton.triton.__version__,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "kernel's speed over": {name: statistics.median(values) for name, values in over.items() if name != "kernel"},
        "difference": worst,
    }  # fmt: skip


def tile(text: str) -> rows_triton.Tile:
    tokens, outputs, inputs, warps, stages = map(int, text.split("x"))
    return rows_triton.Tile(tokens=tokens, outputs=outputs, inputs=inputs, warps=warps, stages=stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--ffn", type=int, default=11008)
    parser.add_argument("--tokens", default="16,512,2560,20480")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tile", type=tile, default=None)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    torch.manual_seed(0)
    weight = torch.randn(args.ffn, args.hidden, dtype=getattr(torch, args.dtype), device="cuda")
    cold = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for side in ("to", "from"):
        for tokens in map(int, args.tokens.split(",")):
            print(json.dumps(compared(side, tokens, args, weight, cold)), flush=True)


if __name__ == "__main__":
    main()
