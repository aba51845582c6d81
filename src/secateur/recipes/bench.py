"""Times of a model, against others and itself probed, in turns; their arithmetic and their memory; and what would be faster."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from secateur import axes
from secateur.calibration.text import read_text
from secateur.calibration.tokens import load_tokenizer, tokenise
from secateur.dynamic_settings import BenchSettings
from secateur.errors import UserError
from secateur.evaluation.flops import Work, count_work
from secateur.evaluation.speed import Cell, compare_speed
from secateur.recipes.bench_memory import measure_peak, open_whole
from secateur.recipes.dynamic import Dynamic, Whole, draw, kept, read_state, restore
from secateur.recipes.rounding import advise
from secateur.reporter import Reporter
from secateur.runs import environment, hardware
from secateur.runtime.refitted import Refitted

CALIBRATED = 128  # tokens of a calibration sequence
NOISY = 0.03  # half the interval in which a speedup's median lies, over it: more is worth a word
LEAST_SECONDS, MOST_SECONDS = 3.0, 10.0  # of one shape: see `compare_speed`
BASE, PROBED = "model", "dynamic"  # names of the first model, and of it probed


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """`cells`: a row for each batch size, length, phase and model: seconds and tokens_per_second of the median run, their least
    and most; `each`, the seconds of every run, the same place of two models being the same tokens, one right after the other;
    `flops`, the arithmetic of the matrix products and attention as it was done, and `flops_per_second`; and for all but the first
    model `speedup`, how many times as fast it is as the first (of paired runs: median, least, most, and `low` and `high`, between
    which the median lies in 95 of 100 cases). `not_faster`: in words, every cell where a smaller model has a median speedup of at
    most 1. `advice`: what would make it so, or that none was found, for the worst of these cells of each checkpoint and phase."""

    models: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    not_faster: list[str]
    advice: list[str]
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
    names = [BASE, *_names(settings.others)]
    paths = dict(zip(names, [settings.model, *settings.others], strict=True))
    opened = {name: open_whole(settings, path) for name, path in paths.items()}
    for whole in opened.values():
        _check_room(settings, whole, report)
    first = opened[names[0]]
    calibration = widths = None
    with TemporaryDirectory(prefix="secateur-") as directory:
        models: dict[str, Any] = {}
        saved = Path(directory) / "state.safetensors"
        if settings.probes:
            probed, calibration = _probed(settings, first, report)
            widths = kept(probed)
            if _learned(probed):
                probed.state.save(saved)
            models[PROBED] = probed
        models = {name: whole.load() for name, whole in opened.items()} | models
        rows = [_described(name, paths.get(name), settings, model) for name, model in models.items()]
        cells = [row for found in _times(settings, models, report) for row in found]
        _warn_of_noise(cells, report)
        slower = _not_faster(rows, cells)
        advice = list(_advice(slower, opened, models, settings, report))
        models.clear()  # their memory is for the processes that follow
        kinds = [measure_peak(row, settings, saved if saved.exists() else None, report) for row in rows]
    return BenchResult(
        models=rows, cells=cells, not_faster=[_lamented(row) for row in slower], advice=advice, runs=settings.runs,
        new_tokens=settings.new_tokens,
        dtype=", ".join(dict.fromkeys(str(whole.dtype).removeprefix("torch.") for whole in opened.values())),
        ratio=settings.dynamic, small=settings.small, widths=widths,
        calibration=calibration, peak_memory=next(filter(None, kinds), "not known"),
        hardware=hardware(settings.device), versions=environment(),
    )  # fmt: skip


def _names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, and a number where there is another of that name."""
    found: list[str] = []
    for path in paths:
        name = Path(path).name or Path(path).resolve().name
        taken = sum(other.partition(" #")[0] == name for other in [*found, BASE, PROBED])
        found.append(f"{name} #{taken + 1}" if taken else name)
    return found


def _check_room(settings: BenchSettings, whole: Whole, report: Reporter) -> None:
    """Refuse positions that a model has no embedding for; say so where they only are more than it was made for."""
    binding, wanted = whole.source.binding, max(settings.seq_len) + settings.new_tokens
    most = getattr(binding.config, "max_position_embeddings", None)
    if not isinstance(most, int) or wanted <= most:
        return
    asked = f"--seq-len {max(settings.seq_len)} and --new-tokens {settings.new_tokens} need {wanted:,} positions, and the "
    theirs = f"{binding.model_type} model in {whole.source.directory}"
    if "position" in binding.sizes:
        raise UserError(f"{asked}{theirs} has {most:,}. Give shorter ones.")
    report.warn(f"{asked}{theirs} is made for {most:,}: it takes as long, but would not be used so")


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


def _described(name: str, path: str | None, settings: BenchSettings, model: Any) -> dict[str, Any]:
    """Parameters of the whole model, of which a probed one has all and uses some."""
    weights = list(model.parameters())
    return {
        "model": name, "path": path or settings.model, "probed": path is None,
        "parameters": sum(w.numel() for w in weights), "parameter_bytes": sum(w.numel() * w.element_size() for w in weights),
    }  # fmt: skip


def _times(settings: BenchSettings, models: dict[str, Any], report: Reporter) -> Iterator[list[dict[str, Any]]]:
    """The rows of each cell."""
    vocab = min(model.get_input_embeddings().num_embeddings for model in models.values())
    grid = [Cell(batch, seq_len) for batch in settings.batch for seq_len in settings.seq_len]
    for number, cell in enumerate(grid):
        label = f"timing batch {cell.batch} x {cell.seq_len} ({number + 1} of {len(grid)} shapes)"
        ids = torch.randint(vocab, tuple(cell), generator=torch.Generator().manual_seed(settings.seed))
        work = {name: count_work(model, ids, settings.new_tokens) for name, model in models.items()}
        times = compare_speed(
            models, cell, vocab=vocab, runs=settings.runs, new_tokens=settings.new_tokens, seed=settings.seed + number,
            track=lambda items, _, label=label: report.track(items, label),
            least_seconds=LEAST_SECONDS, most_seconds=MOST_SECONDS,
        )  # fmt: skip
        yield [_with_work(row, work[row["model"]]) for row in times.rows(settings.new_tokens)]


def _warn_of_noise(cells: Sequence[dict[str, Any]], report: Reporter) -> None:
    known = [row for row in cells if "speedup" in row]
    noisy = [row for row in known if row["speedup_high"] - row["speedup_low"] > 2 * NOISY * row["speedup"]]
    if noisy:
        report.warn(
            f"{len(noisy)} of {len(known)} speedups are not known within {NOISY:.0%}: the times changed from round to round, as they "
            f"do where other programs run. Stop these, or give more --runs"
        )


def _with_work(row: dict[str, Any], work: Work) -> dict[str, Any]:
    flops = getattr(work, row["phase"])
    return row | {"flops": flops, "flops_per_second": flops / row["seconds"]}


def _not_faster(models: list[dict[str, Any]], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells where a smaller model is not faster than the first."""
    whole = models[0]["parameters"]
    smaller = {row["model"] for row in models[1:] if row["probed"] or row["parameters"] < whole}
    return [row for row in cells if row["model"] in smaller and row["speedup"] <= 1]


def _lamented(row: dict[str, Any]) -> str:
    return (
        f"{row['model']} is not faster in {row['phase']} at batch {row['batch']} x {row['seq_len']}: {row['speedup']:.2f} times "
        f"as fast ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    )


def _advice(
    slower: list[dict[str, Any]], opened: dict[str, Whole], models: dict[str, Any], settings: BenchSettings, report: Reporter
) -> Iterator[str]:
    """For the worst cell of each checkpoint and phase, what `--round-to` does about it."""
    base = models[next(iter(opened))]
    for name, phase in dict.fromkeys((row["model"], row["phase"]) for row in slower if row["model"] in opened):
        worst = min((row for row in slower if (row["model"], row["phase"]) == (name, phase)), key=lambda row: row["speedup"])
        report.say(f"trying what --round-to would make of {name}")
        source, cell = opened[name].source, Cell(worst["batch"], worst["seq_len"])
        sizes = [axes.kept_sizes(source.binding.sizes, source.kept(i)) for i in range(source.binding.num_layers)]
        found = advise(
            base, models[name], source.binding, sizes, cell, phase, vocab=source.binding.sizes["vocab"], runs=settings.runs,
            new_tokens=settings.new_tokens if phase == "decode" else 0, seed=settings.seed,
        )  # fmt: skip
        yield f"{name}, {phase} at batch {cell.batch} x {cell.seq_len}: {found}"
