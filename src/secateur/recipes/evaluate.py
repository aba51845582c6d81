"""Perplexity of a model on disk or in memory, one layer at a time."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from secateur.calibration.blocks import Blocks, windows
from secateur.calibration.text import Text
from secateur.calibration.tokens import Tokenizer, check_vocabulary, load_tokenizer, tokenise
from secateur.errors import UserError
from secateur.evaluation.perplexity import Perplexity, measure
from secateur.plan import read_record
from secateur.recipes.opening import check_length, open_device, open_model, open_text
from secateur.reporter import Reporter
from secateur.settings import EvalSettings, parse_bytes
from secateur.streaming.finite import check_outer
from secateur.streaming.memory import fit, peak
from secateur.streaming.module import ModuleSource
from secateur.streaming.source import Source
from secateur.streaming.walk import Walk


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """`perplexity` is exp of the mean loss in nats over `predicted` tokens; `stderr` is of that mean, over windows."""

    model: str
    perplexity: float
    loss: float
    stderr: float | None
    tokens: int
    predicted: int
    seq_len: int
    text: str
    protocol: str
    seconds: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(settings: EvalSettings, report: Reporter) -> EvalResult:
    """Evaluate a checkpoint: any of a supported family, and everything that secateur writes."""
    start = time.perf_counter()
    device = open_device(settings.device)
    source, dtype = open_model(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code
    )
    text = open_text(settings.text, read_record(source.directory), "evaluation")
    tokenizer = load_tokenizer(source.directory, trust_remote_code=settings.trust_remote_code)
    return _evaluated(settings, source, text, tokenizer, device=device, dtype=dtype, report=report, start=start)


def evaluate_module(model: nn.Module, tokenizer: Tokenizer, settings: EvalSettings, report: Reporter) -> EvalResult:
    """Evaluate a Hugging Face model that is in memory by the same walk, where and in the type that it is; it is not changed."""
    start = time.perf_counter()
    source, weight = ModuleSource.of(model), next(model.parameters())
    text = open_text(settings.text, None, "evaluation")
    return _evaluated(settings, source, text, tokenizer, device=weight.device, dtype=weight.dtype, report=report, start=start)


def _evaluated(
    settings: EvalSettings, source: Source, text: Text, tokenizer: Tokenizer, *, device: torch.device, dtype: torch.dtype,
    report: Reporter, start: float,
) -> EvalResult:  # fmt: skip
    check_length(source.binding, settings.seq_len)
    check_outer(source)
    report.say(f"tokenising {text.name}")
    tokens = tokenise(text, tokenizer, bos=settings.bos, max_tokens=settings.max_tokens)
    blocks = windows(tokens, seq_len=settings.seq_len, max_tokens=settings.max_tokens)
    limit = parse_bytes(settings.max_memory) if settings.max_memory else None
    found = perplexity_of(source, blocks, device=device, dtype=dtype, limit=limit, report=report, label="evaluating")
    stderr = found.stderr if math.isfinite(found.stderr) else None  # one window has none
    return EvalResult(
        model=settings.model, perplexity=found.perplexity, loss=found.mean, stderr=stderr, tokens=blocks.num_tokens,
        predicted=found.predicted, seq_len=settings.seq_len, text=blocks.text, protocol=protocol(settings, blocks),
        seconds=time.perf_counter() - start, peak_memory_bytes=peak(),
    )  # fmt: skip


def protocol(settings: EvalSettings, blocks: Blocks) -> str:
    """How it was measured, with the name of the published protocol, if it is one."""
    return f"{settings.protocol}: {blocks.protocol}" if settings.protocol else blocks.protocol


def perplexity_of(
    source: Source, blocks: Blocks, *, device: torch.device, dtype: torch.dtype, limit: int | None, report: Reporter, label: str
) -> Perplexity:
    """Perplexity of any source of weights on given windows."""
    binding = source.binding
    check_vocabulary(blocks.ids, binding.sizes["vocab"])
    shape = (len(blocks.ids), blocks.seq_len)
    stored = source.dtype(binding.embedding)
    fitted = fit(binding, shape=shape, dtype=dtype, stored=stored, statistics=0, limit=limit)
    walk = Walk.over(source, device=device, dtype=dtype, tokens=fitted.tokens)
    try:
        found = measure(walk, blocks.ids, spill=fitted.spill, track=lambda items, n: report.track(items, label, n))
    except OSError as error:
        raise UserError(
            f"{label} failed at the hidden states in {error.filename}: {error.strerror or error}. Make room there, set TMPDIR to a "
            f"directory on another disk, or give a larger --max-memory."
        ) from error
    if not math.isfinite(found.mean):
        check_outer(source)
        raise UserError(
            f"{label}: the loss is NaN or infinite although the weights are finite: the head overflows. Compute in a wider type: "
            f"--dtype fp32 (or bf16 instead of fp16)."
        )
    return found
