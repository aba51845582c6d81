"""`secateur bench`: how fast, and in how much memory."""

from collections.abc import Mapping
from typing import Annotated, Any

from typer import Argument, Option

from secateur.cli.options import Device, Dtype, Json, Model, RunDir, TrustRemoteCode
from secateur.cli.output import Output
from secateur.cli.probing import Attention, Calibration, Dynamic, Griffin, Memory, Paper, Rechoose, Samples, Seed, Small, State
from secateur.cli.recording import leave_record

Others = Annotated[list[str] | None, Argument(metavar="OTHER", help="Checkpoints to compare it with.", show_default=False)]
Batch = Annotated[str, Option(help="Numbers of sequences.")]
SeqLen = Annotated[str, Option(help="Numbers of tokens in each.")]
NewTokens = Annotated[int, Option(help="Tokens to decode after each; 0 leaves decoding out.")]
Runs = Annotated[
    int, Option(help="Timed runs of each model and shape, after one that does not count; more where they are short.")
]


def bench(
    model: Model,
    others: Others = None,
    batch: Batch = "1,4,20",
    seq_len: SeqLen = "16,128,512",
    new_tokens: NewTokens = 64,
    runs: Runs = 5,
    dynamic: Dynamic = None,
    small: Small = None,
    state: State = None,
    attention: Attention = None,
    paper: Paper = False,
    griffin: Griffin = False,
    memory: Memory = "kept",
    rechoose: Rechoose = None,
    calibration: Calibration = None,
    samples: Samples = 8,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    run_dir: RunDir = None,
    json: Json = False,
) -> None:
    """Time a model on random tokens; in turns with others, or with itself pruned anew for each batch, where these are given."""
    options = {**locals()}
    del options["json"], options["run_dir"]
    with Output(json) as output:
        from secateur.dynamic_settings import BenchSettings

        settings = BenchSettings(**options)
        from secateur.recipes.bench import bench as run

        found = run(settings, output.reporter).to_json()
        leave_record(output, "bench", settings, found, run_dir=run_dir)
        output.show("Benchmark", found if json else _shown(found))


def _shown(found: Mapping[str, Any]) -> dict[str, Any]:
    """The medians; behind them the least and most of a time, and where the median of a speedup lies."""
    rows = [
        {
            "shape": f"{row['batch']} x {row['seq_len']}",
            **{name: row[name] for name in ("phase", "model")},
            "ms": _spread(row, "seconds", ("least", "most"), 1000.0),
            "tokens/s": f"{row['tokens_per_second']:,.0f}",
            "GFLOP/s": _digits(row["flops_per_second"] / 1e9),
            "speedup": _spread(row, "speedup", ("low", "high")) if "speedup" in row else "",
        }
        for row in found.get("cells", [])
    ]
    return {name: value for name, value in {**found, "cells": rows}.items() if value != [] and name != "runs"}


def _spread(row: Mapping[str, Any], name: str, ends: tuple[str, str], factor: float = 1.0) -> str:
    middle, low, high = (_digits(row[key] * factor) for key in (name, *(f"{name}_{end}" for end in ends)))
    return f"{middle} ({low}..{high})"


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
