"""Compensation of readers, compared: perplexity after pruning, in the mean of several calibration draws.

    python benchmarks/compensation.py MODEL --calibration FILE --evaluation FILE [--half] [--ratios 0.2,0.4,0.5] [--draws 3]

With --half, FILE is cut in two: its first half calibrates and its second half evaluates. Every cell is a whole `secateur.prune`,
written to disk and read back. Prints a Markdown table and, with --out, writes JSON.
"""

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import secateur

COMPENSATIONS = ("none", "bias", "least-squares")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--ratios", default="0.2,0.4,0.5")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--method", default="flap")
    parser.add_argument("--ridge", type=float)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cells: dict[tuple[str, float, str], list[float]] = {}
    with TemporaryDirectory() as base:
        calibration, evaluation = texts(args, Path(base))
        for allocation, ratio, seed, how in product(
            ("uniform", "global"), map(float, args.ratios.split(",")), range(args.draws), COMPENSATIONS
        ):
            ridge = {"ridge": args.ridge} if args.ridge is not None and how == "least-squares" else {}
            result = secateur.prune(
                args.model, out=Path(base) / "out", ratio=ratio, method=args.method, allocation=allocation, compensate=how,
                seed=seed, calibration=str(calibration), evaluation=str(evaluation), force=True, **ridge,
            )  # fmt: skip
            assert result.perplexity_after is not None
            cells.setdefault((allocation, ratio, how), []).append(result.perplexity_after)
            before = result.perplexity_before
    name = Path(args.model).name
    print(f"{name}: dense perplexity {before:.3f}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| allocation | ratio | " + " | ".join(COMPENSATIONS) + " | least squares / bias |\n|---|---|---|---|---|---|")
    for allocation, ratio in dict.fromkeys((a, r) for a, r, _ in cells):
        mean = {how: statistics.mean(cells[allocation, ratio, how]) for how in COMPENSATIONS}
        spread = {how: (min(cells[allocation, ratio, how]), max(cells[allocation, ratio, how])) for how in COMPENSATIONS}
        shown = [f"{mean[h]:.2f} ({spread[h][0]:.2f}-{spread[h][1]:.2f})" for h in COMPENSATIONS]
        print(f"| {allocation} | {ratio} | {' | '.join(shown)} | {mean['least-squares'] / mean['bias']:.3f} |", flush=True)
    if args.out:
        rows = [{"allocation": a, "ratio": r, "compensate": h, "perplexity": p} for (a, r, h), p in cells.items()]
        args.out.write_text(json.dumps({"model": name, "dense": before, "method": args.method, "cells": rows}, indent=2) + "\n")


def texts(args: argparse.Namespace, base: Path) -> tuple[Path, Path]:
    if not args.half:
        assert args.evaluation, "give --evaluation FILE or --half"
        return args.calibration, args.evaluation
    body = args.calibration.read_text()
    middle = body.index("\n", len(body) // 2) + 1
    paths = base / "first-half.txt", base / "second-half.txt"
    for path, part in zip(paths, (body[:middle], body[middle:]), strict=True):
        path.write_text(part)
    return paths


if __name__ == "__main__":
    main()
