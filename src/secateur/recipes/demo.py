"""The main job on the embedded model: pruned, loaded back with plain transformers, compared."""

import json
import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from secateur.calibration.stdlib import fingerprint
from secateur.evaluation.speed import Cell, Times, compare_speed
from secateur.export.load import without_bars
from secateur.recipes.prune import PruneResult, prune
from secateur.recipes.recording import RUNS, leave
from secateur.records import Model, Record, identity, read_runs
from secateur.reporter import Reporter
from secateur.reporting.command import portable
from secateur.reporting.page import html_report
from secateur.reporting.writing import write_report
from secateur.settings import PruneSettings

OUT = Path("secateur-demo")
RATIO = 0.3
PROMPT = "import os\n\n\ndef "
ROUNDS, LENGTH = 6, 256


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """`speed` is the original's time over the pruned model's for one forward pass: the median of paired rounds."""

    out: str
    report: str
    """The page that shows all of it."""
    ratio_reached: float
    parameters_before: int
    parameters_after: int
    perplexity_before: float | None
    perplexity_after: float | None
    stock: bool
    load: str
    speed: float
    continuation_before: str
    continuation_after: str
    seconds: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def default_model() -> Path:
    """The directory of the model that comes with the package."""
    return Path(str(files("secateur") / "default_model"))


def demo(report: Reporter) -> DemoResult:
    """Prune the embedded model by 30% on this Python's own standard library; no network, no files needed."""
    start = time.perf_counter()
    model = default_model()
    warn_of_other_text(model, report)
    settings = PruneSettings(
        model=str(model), out=OUT / "pruned", ratio=RATIO, calibration="stdlib", format="stock", force=True
    )
    result = prune(settings, report)
    assert isinstance(result, PruneResult)
    report.say("loading both with transformers, to compare what they say and how fast")
    with without_bars():
        before, after = load(model), load(OUT / "pruned")
    times = compare(before[0], after[0])
    found = DemoResult(
        out=result.out, report=str(OUT / "report.html"), ratio_reached=result.ratio_reached, parameters_before=result.parameters_before,
        parameters_after=result.parameters_after, perplexity_before=result.perplexity_before,
        perplexity_after=result.perplexity_after, stock=result.stock, load=result.load,
        speed=times.speedup("prefill", "pruned", "model").median,
        continuation_before=continuation(*before), continuation_after=continuation(*after),
        seconds=time.perf_counter() - start, peak_memory_bytes=result.peak_memory_bytes,
    )  # fmt: skip
    timed = {"models": [{"model": "model"}, {"model": "pruned"}], "cells": list(times.rows(0)), "runs": ROUNDS}
    record = Record.now(
        "demo", command="secateur demo", settings={}, result=portable(found.to_json()) | timed,
        models={
            "model": Model(name=model.name, identity=identity(model)), "pruned": Model(name="pruned", identity=identity(OUT / "pruned"))
        },
    )  # fmt: skip
    leave(record, OUT / RUNS, report)
    write_report(html_report([*read_runs([OUT / "pruned"]), record]), OUT / "report.html", force=True)
    return found


def warn_of_other_text(model: Path, report: Reporter) -> None:
    """The text is the running Python's own; another version has other sources, and the figures move."""
    made = json.loads((model / "provenance.json").read_text())
    if made["fingerprints"]["evaluation"] != fingerprint("evaluation"):
        report.warn(
            f"the embedded model was trained and measured on the standard library of Python {made['python']}; "
            f"this Python's differs, so the figures move"
        )


def load(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


@torch.no_grad()
def continuation(model: Any, tokenizer: Any) -> str:
    ids = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=32, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def compare(before: Any, after: Any) -> Times:
    """One forward pass of each, in turns."""
    models = {"model": before, "pruned": after}
    return compare_speed(models, Cell(1, LENGTH), vocab=before.config.vocab_size, runs=ROUNDS, new_tokens=0, seed=0)
