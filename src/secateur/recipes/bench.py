"""Times of a model against another, or itself probed, in turns; and how much memory each takes, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from secateur.calibration.text import read_text
from secateur.calibration.tokens import load_tokenizer, tokenise
from secateur.dynamic_settings import BenchSettings
from secateur.errors import UserError
from secateur.evaluation.speed import Cell, PeakMemory, Spread, Times, compare_speed, time_once
from secateur.recipes.dynamic import Dynamic, Whole, draw, kept, read_state, restore
from secateur.reporter import Reporter
from secateur.runs import environment, hardware
from secateur.runtime.refitted import Refitted
from secateur.streaming.heap import steady_heap

CALIBRATED = 128  # tokens of a calibration sequence
ALONE = "import sys; from secateur.recipes.bench import alone; alone(sys.argv[1])"


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """`cells`: a row for each batch size, length, phase and model: seconds and tokens_per_second of the median run, their least
    and most, and for all but the first model `speedup`, how many times as fast it is as the first (of paired runs: median, least,
    most). `not_faster`: in words, every cell where a smaller model has a median speedup of at most 1."""

    models: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    not_faster: list[str]
    runs: int
    new_tokens: int
    dtype: str
    ratio: float | None
    small: str | None
    widths: dict[str, dict[str, int]] | None
    calibration: str | None
    peak_memory: str
    """What peak_memory_bytes is of."""
    hardware: dict[str, Any]
    versions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(settings: BenchSettings, report: Reporter) -> BenchResult:
    """Time the models. Raises `UserError` for one that cannot be used, or a length that one does not have."""
    first = _open(settings, settings.model)
    opened = {"model": first} | ({"other": _open(settings, settings.other)} if settings.other else {})
    for whole in opened.values():
        _check_room(settings, whole)
    calibration = widths = None
    with TemporaryDirectory(prefix="secateur-") as directory:
        models: dict[str, Any] = {}
        saved = Path(directory) / "state.safetensors"
        if settings.probes:
            probed, calibration = _probed(settings, first, report)
            widths = kept(probed)
            if _learned(probed):
                probed.state.save(saved)
            models["dynamic"] = probed
        models = {name: whole.load() for name, whole in opened.items()} | models
        rows = [_described(name, settings, model) for name, model in models.items()]
        times = list(_times(settings, models, report))
        models.clear()  # their memory is for the processes that follow
        kinds = [_peak(row, settings, saved if saved.exists() else None, report) for row in rows]
    cells = [row for found in times for row in _rows(found, settings.new_tokens)]
    return BenchResult(
        models=rows, cells=cells, not_faster=_not_faster(rows, cells), runs=settings.runs, new_tokens=settings.new_tokens,
        dtype=", ".join(dict.fromkeys(str(whole.dtype).removeprefix("torch.") for whole in opened.values())),
        ratio=settings.dynamic, small=settings.small, widths=widths,
        calibration=calibration, peak_memory=next(filter(None, kinds), "not known"),
        hardware=hardware(settings.device), versions=environment(),
    )  # fmt: skip


def _open(settings: BenchSettings, spec: str) -> Whole:
    return Whole.open(spec, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code)


def _check_room(settings: BenchSettings, whole: Whole) -> None:
    binding, wanted = whole.source.binding, max(settings.seq_len) + settings.new_tokens
    if "position" in binding.sizes and wanted > (most := binding.config.max_position_embeddings):
        raise UserError(
            f"--seq-len {max(settings.seq_len)} and --new-tokens {settings.new_tokens} need {wanted} positions, and the "
            f"{binding.model_type} model in {whole.source.directory} has {most}. Give shorter ones."
        )


def _probed(settings: BenchSettings, whole: Whole, report: Reporter) -> tuple[Dynamic, str | None]:
    """The model probed and calibrated, and on what."""
    learns = whole.learns(settings)
    if not whole.leaves(settings):
        why = f"at a ratio of {settings.dynamic} nothing leaves this model"
        why = why if settings.small is None else f"{settings.small} lost no MLP channel"
        report.warn(f"{why}: `dynamic` is the model itself")
    if not learns or settings.state is not None:
        state = read_state(settings) if settings.state is not None and learns else None
        model = whole.probed(settings, rechoose=settings.rechoose)
        return model, restore(model, state, settings.state) if state and settings.state else None
    binding = whole.source.binding
    length = min(CALIBRATED, binding.config.max_position_embeddings) if "position" in binding.sizes else CALIBRATED
    if settings.calibration is None:
        shape = (settings.samples, length)
        ids = torch.randint(binding.sizes["vocab"], shape, generator=torch.Generator().manual_seed(settings.seed))
        protocol = f"{settings.samples} sequences of {length} random token ids: these times say nothing of quality"
    else:
        text = read_text(settings.calibration, role="calibration")
        tokenizer = load_tokenizer(whole.source.directory, trust_remote_code=settings.trust_remote_code)
        blocks = draw(tokenise(text, tokenizer), settings, seq_len=length, source=whole.source)
        ids, protocol = blocks.ids, blocks.protocol
    model = whole.probed(settings, rechoose=settings.rechoose)
    report.say("calibrating")
    return model.calibrate(ids), protocol


def _learned(model: Dynamic) -> bool:
    return bool(model.state.known if isinstance(model, Refitted) else model.state.histories)


def _described(name: str, settings: BenchSettings, model: Any) -> dict[str, Any]:
    """Parameters of the whole model, of which a probed one has all and uses some."""
    weights = list(model.parameters())
    return {
        "model": name, "path": settings.other if name == "other" else settings.model,
        "parameters": sum(w.numel() for w in weights), "parameter_bytes": sum(w.numel() * w.element_size() for w in weights),
    }  # fmt: skip


def _times(settings: BenchSettings, models: dict[str, Any], report: Reporter) -> Iterator[Times]:
    vocab = min(model.get_input_embeddings().num_embeddings for model in models.values())
    grid = [Cell(batch, seq_len) for batch in settings.batch for seq_len in settings.seq_len]
    for number, cell in enumerate(grid):
        label = f"timing batch {cell.batch} x {cell.seq_len} ({number + 1} of {len(grid)} shapes)"
        yield compare_speed(
            models, cell, vocab=vocab, runs=settings.runs, new_tokens=settings.new_tokens, seed=settings.seed + number,
            track=lambda items, total, label=label: report.track(items, label, total),
        )  # fmt: skip


def _rows(times: Times, new_tokens: int) -> Iterator[dict[str, Any]]:
    batch, seq_len = times.cell
    for phase, tokens in (("prefill", batch * seq_len), ("decode", batch * new_tokens)):
        for name, runs in getattr(times, phase).items():
            row: dict[str, Any] = {"batch": batch, "seq_len": seq_len, "phase": phase, "model": name}
            row |= _named("seconds", Spread.of(runs)) | _named("tokens_per_second", Spread.of([tokens / s for s in runs]))
            yield row | ({} if name == "model" else _named("speedup", times.speedup(phase, name, "model")))


def _named(name: str, spread: Spread) -> dict[str, float]:
    return {name: spread.median, f"{name}_least": spread.least, f"{name}_most": spread.most}


def _not_faster(models: list[dict[str, Any]], cells: list[dict[str, Any]]) -> list[str]:
    whole = models[0]["parameters"]
    smaller = {row["model"] for row in models if row["model"] == "dynamic" or row["parameters"] < whole}
    return [
        f"{row['model']} is not faster in {row['phase']} at batch {row['batch']} x {row['seq_len']}: {row['speedup']:.2f} times "
        f"as fast ({row['speedup_least']:.2f} to {row['speedup_most']:.2f})"
        for row in cells
        if row["model"] in smaller and row["speedup"] <= 1
    ]


def _peak(row: dict[str, Any], settings: BenchSettings, state: Path | None, report: Reporter) -> str:
    """Measure one model's peak in a process of its own, into its row; says of what it is."""
    report.say(f"measuring the memory of {row['model']} in a process of its own")
    asked = {"name": row["model"], "settings": settings.to_json(), "state": None if state is None else str(state)}
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
    whole = _open(settings, settings.other if given["name"] == "other" and settings.other else settings.model)
    if given["name"] == "dynamic":
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
