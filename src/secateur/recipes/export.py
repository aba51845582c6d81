"""A checkpoint as a GGUF file: chosen, written, read back, and run by llama.cpp, before it appears under its name."""

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur import axes
from secateur.calibration.tokens import load_tokenizer
from secateur.errors import UserError
from secateur.export.gguf import Content, check_file, compare, published_file, write
from secateur.export.gguf_arch import choose, context_length
from secateur.export.gguf_tokenizer import Vocabulary, vocabulary
from secateur.export.huggingface import check_disk
from secateur.export.llama_cpp import installed
from secateur.export_settings import ExportSettings
from secateur.recipes.export_check import Agreement, agreement
from secateur.reporter import Reporter
from secateur.streaming.checkpoint import Checkpoint, locate
from secateur.streaming.finite import check_outer
from secateur.streaming.memory import peak

NOT_RUN = "llama.cpp was not run: every tensor was read back and compared with its weight, and that is all that is known"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """`kept_wider`: matrices that stayed in f16 because their rows do not divide into blocks. `agreement`: None if not run."""

    model: str
    out: str
    architecture: str
    dtype: str
    tokenizer: str | None
    context_length: int
    tensors: int
    kept_wider: int
    bytes: int
    agreement: dict[str, Any] | None
    notes: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export(settings: ExportSettings, report: Reporter) -> ExportResult:
    """Write a checkpoint as GGUF. Raises `UserError` for what llama.cpp cannot hold, and for a file that disagrees."""
    start = time.perf_counter()
    check_package()
    directory = locate(settings.model)
    out = settings.out or _beside(settings, directory)
    check_file(out, force=settings.force)
    source = Checkpoint.open(directory, trust_remote_code=settings.trust_remote_code)
    check_outer(source)
    binding = source.binding
    layers = [axes.kept_sizes(binding.sizes, source.kept(i)) for i in range(binding.num_layers)]
    architecture = choose(binding, layers)
    own = _vocabulary(settings, source)
    content = Content(
        source=source, architecture=architecture, layers=layers, kind=settings.dtype, vocabulary=own, name=directory.name
    )  # fmt: skip
    slots = content.slots()
    check_disk({out.absolute().parent: sum(slot.num_bytes for slot in slots)})
    if window := context_length(binding.config)[1]:
        report.warn(window)
    report.say(f"as {architecture.name}: {len(slots)} tensors")
    with published_file(out) as fresh:
        write(fresh, content, lambda items, n: report.track(items, "writing", n))
        compare(fresh, content, slots, lambda items, n: report.track(items, "reading back", n))
        found = agreement(fresh, settings, source, own, report) if settings.check and installed() else None
        size = fresh.stat().st_size
    wider = sum(slot.kind == "f16" for slot in slots) if settings.dtype == "q8_0" else 0
    return ExportResult(
        model=settings.model, out=str(out), architecture=architecture.name, dtype=settings.dtype,
        tokenizer=None if own is None else own.kind, context_length=context_length(binding.config)[0], tensors=len(slots),
        kept_wider=wider, bytes=size, agreement=None if found is None else asdict(found),
        notes=tuple(_notes(content, wider, found)), seconds=time.perf_counter() - start, peak_memory_bytes=peak(),
    )  # fmt: skip


def _notes(content: Content, wider: int, found: Agreement | None) -> Iterator[str]:
    _, window = context_length(content.source.binding.config)
    if window:
        yield window
    if wider:
        yield (
            f"{wider} matrices are in f16, because their rows do not divide into the blocks of 32 that q8_0 has: "
            f"`secateur prune --round-to 32` gives widths that do"
        )
    if content.vocabulary is not None:
        yield from content.vocabulary.notes
    if found is None:
        yield NOT_RUN
    elif found.texts_split_otherwise:
        yield f"llama.cpp splits these into other tokens: {', '.join(map(repr, found.texts_split_otherwise))}"


def check_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "GGUF files are written by the package gguf, which is not installed. Install it: pip install secateur[gguf]"
        )


def _beside(settings: ExportSettings, directory: Path) -> Path:
    """A hub model's own directory is a cache, so its file goes where the person is."""
    local = Path(settings.model).expanduser().is_dir()
    beside = directory.absolute() if directory.name not in ("", "..") else directory.resolve()  # a link keeps its own name
    name = beside.name if local else settings.model.rpartition("/")[2]
    return (beside.parent if local else Path()) / f"{name}-{settings.dtype}.gguf"


def _vocabulary(settings: ExportSettings, source: Checkpoint) -> Vocabulary | None:
    if not settings.tokenizer:
        return None
    tokenizer = load_tokenizer(source.directory, trust_remote_code=settings.trust_remote_code)
    return vocabulary(tokenizer, source.binding.sizes["vocab"])
