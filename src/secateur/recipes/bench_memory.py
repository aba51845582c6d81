"""How much memory each model of a benchmark takes, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from secateur.dynamic_settings import BenchSettings
from secateur.evaluation.speed import Cell, PeakMemory, time_once
from secateur.recipes.dynamic import Whole, read_state, restore
from secateur.reporter import Reporter
from secateur.streaming.heap import steady_heap

ALONE = "import sys; from secateur.recipes.bench_memory import alone; alone(sys.argv[1])"


def open_whole(settings: BenchSettings, spec: str) -> Whole:
    """One of the models, looked at."""
    return Whole.open(spec, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)


def measure_peak(row: dict[str, Any], settings: BenchSettings, state: Path | None, report: Reporter) -> str:
    """Measure one model's peak in a process of its own, into its row; says of what it is."""
    report.say(f"measuring the memory of {row['model']} in a process of its own")
    asked = {
        "path": row["path"],
        "probed": row["probed"],
        "settings": settings.to_json(),
        "state": None if state is None else str(state),
    }
    done = subprocess.run([sys.executable, "-c", ALONE, json.dumps(asked)], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"bytes": None, "of": ""}
        report.warn(f"the memory of {row['model']} is not known: its process ended with code {done.returncode}")
    row["peak_memory_bytes"] = found["bytes"]
    return found["of"]


def alone(asked: str) -> None:
    """In a process of its own: run one model on the largest shape, and print the peak."""
    steady_heap()  # which equal runs have equal peaks with
    given = json.loads(asked)
    settings = BenchSettings(**given["settings"])
    whole = open_whole(settings, given["path"])
    if given["probed"]:
        model: Any = whole.probed(settings, rechoose=settings.rechoose)
        if given["state"]:
            restore(model, read_state(settings.model_copy(update={"state": Path(given["state"])})), Path(given["state"]))
    else:
        model = whole.load()
    cell = max((Cell(b, s) for b in settings.batch for s in settings.seq_len), key=lambda c: c.batch * c.seq_len)
    memory = PeakMemory(whole.device)
    memory.restart()
    generator = torch.Generator().manual_seed(settings.seed)
    ids = torch.randint(whole.source.binding.sizes["vocab"], tuple(cell), generator=generator)
    time_once(model, ids, settings.new_tokens)
    kind = "the CUDA device's memory" if whole.device.type == "cuda" else "resident memory"
    since = "since it was started" if memory.whole_process else "after loading, weights included"
    of = f"{kind} of a process for each model, {since}, at batch {cell.batch} x {cell.seq_len}"
    print(json.dumps({"bytes": memory.read(), "of": of + (", decoding included" if settings.new_tokens else "")}))
