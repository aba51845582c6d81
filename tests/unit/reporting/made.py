"""Records made up by hand, one of each kind, for the report's tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.records import Model, Record

PROTOCOL = (
    "256 consecutive non-overlapping windows of 128 tokens (32,768 in all), of held-out last fifth of stories.txt; no BOS"
)
HARDWARE = {
    "cpu": "Abacus 3000",
    "device": "cpu",
    "threads": 1,
    "secateur": "1",
    "torch": "2",
    "transformers": "3",
    "python": "4",
}
BINS = 24


def pruned(
    name: str = "smaller", *, layers: int = 8, kept: int = 400, perplexity: float = 12.5, axes: Sequence[str] = ("kv", "ffn"),
    dropped: Sequence[int] = (), base: str = "base", **changes: Any,
) -> Record:  # fmt: skip
    result = {
        "out": name, "model": base, "method": "sensitivity", "compensate": "least-squares", "allocation": "global", "ratio": 0.3,
        "ratio_reached": 0.2998, "parameters_before": 6_557_952, "parameters_after": 4_000_000 + 1000 * kept,
        "bytes_before": 13_115_904,
        "bytes_after": 2 * (4_000_000 + 1000 * kept), "perplexity_before": 10.0, "perplexity_after": perplexity,
        "perplexity_stderr_before": 0.5, "perplexity_stderr_after": 0.6, "loss_rise": 0.223, "loss_rise_stderr": 0.004,
        "evaluation": PROTOCOL, "calibration": "128 of 929 windows of 128 tokens", "stock": True, "verified": 2e-7, "seconds": 7.25,
        "load": f'AutoModelForCausalLM.from_pretrained("{name}")', "peak_memory_bytes": 6 * 2**20, "notes": ["written as Mistral"],
        "gradient": {"estimator": "Backprop()"}, "overlap": {"in_calibration_text_ratio": 0.0012},
        **changes,
    }  # fmt: skip
    return record(
        "prune", result, {"before": Model(name=base, identity=f"of {base}"), "after": Model(name=name, identity=f"of {name}")},
        figures=figures(layers, kept, axes, dropped), command=f"secateur prune {base} --out {name} --ratio 0.3",
    )  # fmt: skip


def figures(layers: int, kept: int, axes: Sequence[str], dropped: Sequence[int]) -> dict[str, Any]:
    units = {"kv": 4, "ffn": 640, "group": 32}
    stays = {"kv": 3, "ffn": kept, "group": 20}
    return {
        "axes": {axis: {"units": units[axis], "parameters": 768} for axis in axes}, "layer_parameters": 700_000,
        "layers": [None if n in dropped else {axis: stays[axis] for axis in axes} for n in range(layers)],
        "costs": [
            {"layer": n, "axis": axis, "left": units[axis] - stays[axis], "of": units[axis], "parameters": 157_440, "share": 0.0201,
             "loss": 1.2e-5}
            for n in range(layers) if n not in dropped for axis in axes
        ],
        "scores": {axis: scores(layers) for axis in axes}, "influence": [0.1 * n for n in range(layers)] if dropped else None,
    }  # fmt: skip


def scores(layers: int, scale: str = "log") -> dict[str, Any]:
    edges = [10.0 ** (-12 + n / 3) for n in range(BINS + 1)] if scale == "log" else [n - 12.5 for n in range(BINS + 1)]
    bins = [
        {"kept": [n * k for k in range(BINS)], "left": list(range(BINS, 0, -1)), "quantiles": [1e-9] * 5}
        for n in range(1, layers)
    ]
    return {"scale": scale, "edges": edges, "layers": [None, *bins]}


def evaluated(name: str, perplexity: float = 12.6, protocol: str = "all windows of 2,048", **changes: Any) -> Record:
    result = {
        "perplexity": perplexity,
        "loss": 2.5,
        "stderr": 0.02,
        "protocol": protocol,
        "seconds": 3.0,
        "peak_memory_bytes": 2**29,
    }
    return record("eval", result | changes, {"model": Model(name=name, identity=f"of {name}")})


def tasked(name: str, accuracy: float = 0.61) -> Record:
    rows = [
        {"task": task, "metric": "acc", "value": accuracy, "stderr": 0.011, "shots": 0, "examples": 1838}
        for task in ("piqa", "boolq")
    ]
    return record("eval", {"tasks": rows, "seconds": 9.0}, {"model": Model(name=name, identity=f"of {name}")})


def timed(name: str, base: str = "base", speedup: float = 1.4, seconds: float = 0.02) -> Record:
    cells = []
    for phase in ("prefill", "decode"):
        for batch, seq_len in ((1, 16), (4, 512)):
            both = (("model", seconds * speedup, {}), ("other", seconds, _spread("speedup", speedup)))
            cells += [
                {"batch": batch, "seq_len": seq_len, "phase": phase, "model": part, "flops": 7, **_spread("seconds", time),
                 **_spread("tokens_per_second", 640.0), **extra}
                for part, time, extra in both
            ]  # fmt: skip
    models = [{"model": part, "path": path, "parameters": 5, "peak_memory_bytes": peak} for part, path, peak in
              (("model", base, 2**30), ("other", name, 2**29))]  # fmt: skip
    result = {
        "models": models, "cells": cells, "runs": 5, "new_tokens": 8, "peak_memory": "resident memory of a process for each model",
        "not_faster": [f"other is not faster in decode at batch 1 x 16: {speedup:.2f} times as fast"] if speedup <= 1 else [],
    }  # fmt: skip
    return record(
        "bench", result, {"model": Model(name=base, identity=f"of {base}"), "other": Model(name=name, identity=f"of {name}")}
    )


def _spread(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_least": 0.9 * value, f"{name}_most": 1.2 * value}


def compared(methods: Sequence[str] = ("flap", "magnitude[compensate=none]")) -> Record:
    cells = [
        {"entry": method, "ratio": ratio, "seed": seed, "ratio_reached": ratio, "perplexity": 10 + 30 * ratio * n + seed}
        for n, method in enumerate(methods, start=1) for ratio in (0.2, 0.4) for seed in (0, 1)
    ]  # fmt: skip
    cells.append({"entry": methods[0], "ratio": 0.9, "seed": 0, "refused": "it cannot be met."})
    return record("compare", {"model": "base", "perplexity_before": 10.0, "evaluation": PROTOCOL, "cells": cells}, {})


def studied() -> Record:
    rows = [
        {"method": "fms", "gradient": gradient, "seed": seed, "spearman": {"kv": 0.9, "ffn": None}, "cosine": 0.8, "seconds": 1.5,
         "peak_memory_bytes": 2**28, "perplexity": {"0.2": {"none": 20.0 + seed, "least-squares": 12.0}}}
        for gradient in ("backprop", "spsa-gates:n=16,design=hadamard") for seed in (0, 1)
    ]  # fmt: skip
    return record("study gradients", {"model": "base", "perplexity_before": 10.0, "evaluation": PROTOCOL, "rows": rows}, {})


def generated(prompt: str = "Once upon a time", text: str = ", there was") -> Record:
    result = {"completions": [{"prompt": prompt, "text": text, "new_tokens": 3}], "tokens_per_second": 81.25}
    return record("generate", result, {"model": Model(name="smaller", identity="of smaller", probed="dynamic 0.4")})


def record(
    verb: str,
    result: Mapping[str, Any],
    models: Mapping[str, Model],
    *,
    figures: Mapping[str, Any] | None = None,
    command: str = "",
) -> Record:
    return Record(
        verb=verb, command=command or f"secateur {verb} x", settings={}, result=result, models=models, figures=figures or {},
        environment=HARDWARE, time="2026-11-22T20:00:00+0000",
    )  # fmt: skip


def everything() -> list[Record]:
    """A comparison with all that a report can hold."""
    return [
        pruned(), pruned("a-model-with-a-very-long-name-that-goes-on-and-on-0123456789", kept=300, perplexity=16.0),
        pruned("x" * 120, kept=200, perplexity=44.0, layers=40, axes=("group",)), pruned("shallow", dropped=(2, 3), perplexity=19.0),
        evaluated("smaller"), evaluated("base", 9.9), evaluated("lonely", 3.0), tasked("smaller"), tasked("base", 0.7),
        timed("smaller"),
        timed("shallow", speedup=0.97, seconds=0.04), compared([f"method-{n}" for n in range(11)]), studied(), generated(),
    ]  # fmt: skip
