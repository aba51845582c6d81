"""Perplexity of a model that is pruned anew for each batch of windows."""

import math
import time
from dataclasses import dataclass
from typing import Any

from secateur.calibration.blocks import Blocks, windows
from secateur.calibration.overlap import Overlap, check_overlap, overlap
from secateur.calibration.text import read_text, read_texts
from secateur.calibration.tokens import Tokenizer, check_vocabulary, load_tokenizer, tokenise
from secateur.dynamic_settings import ProbedEvalSettings
from secateur.errors import UserError
from secateur.evaluation.perplexity import measure_whole
from secateur.recipes.dynamic import Whole, draw, kept, read_state, restore
from secateur.recipes.evaluate import EvalResult, protocol
from secateur.recipes.opening import DEFAULT_TEXT, check_length
from secateur.reporter import Reporter
from secateur.streaming.memory import peak


@dataclass(frozen=True, kw_only=True)
class ProbedEvalResult(EvalResult):
    """`batch`: windows that one choice was made for. `overlap`: None where the calibration text is not known here."""

    ratio: float | None
    small: str | None
    widths: dict[str, dict[str, int]]
    batch: int
    calibration: str | None
    online: bool
    """Batches changed the state, so their order matters."""
    overlap: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class _Texts:
    held: Blocks
    drawn: Blocks | None
    overlap: Overlap | None


def evaluate_probed(settings: ProbedEvalSettings, report: Reporter) -> ProbedEvalResult:
    """Evaluate a checkpoint, probed. Raises `UserError` for texts that overlap, and for what cannot be used."""
    start = time.perf_counter()
    whole = Whole.open(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code
    )
    learns = whole.learns(settings)
    check_length(whole.source.binding, settings.seq_len)
    tokenizer = load_tokenizer(whole.source.directory, trust_remote_code=settings.trust_remote_code)
    texts = _texts(settings, whole, tokenizer, calibrates=learns and settings.state is None, report=report)
    state = read_state(settings) if learns and settings.state is not None else None
    model = whole.probed(settings)
    calibration = texts.drawn.protocol if texts.drawn else None
    if texts.drawn:
        report.say(f"calibrating on {texts.drawn.text}")
        model.calibrate(texts.drawn.ids)
    elif state is not None and settings.state is not None:
        calibration = restore(model, state, settings.state)
    found = measure_whole(
        model, texts.held.ids, batch=settings.batch, track=lambda items, n: report.track(items, "evaluating", n)
    )
    if not math.isfinite(found.mean):
        raise UserError(
            "evaluating: the loss is NaN or infinite. A weight is damaged, or the arithmetic overflows: try a wider type, "
            "--dtype fp32 (or bf16 instead of fp16)."
        )
    held = texts.held
    return ProbedEvalResult(
        model=settings.model, perplexity=found.perplexity, loss=found.mean,
        stderr=found.stderr if math.isfinite(found.stderr) else None, tokens=held.num_tokens, predicted=found.predicted,
        seq_len=settings.seq_len, text=held.text, protocol=protocol(settings, held), seconds=time.perf_counter() - start,
        peak_memory_bytes=peak(), ratio=settings.dynamic, small=settings.small, widths=kept(model),
        batch=settings.batch, calibration=calibration,
        online=model.state.online, overlap=texts.overlap.to_json() if texts.overlap else None,
    )  # fmt: skip


def _texts(settings: ProbedEvalSettings, whole: Whole, tokenizer: Tokenizer, *, calibrates: bool, report: Reporter) -> _Texts:
    """The windows, and the blocks to calibrate on if any are wanted."""
    if calibrates or (settings.text is None and settings.calibration is not None):
        calibration, evaluation = read_texts(settings.calibration or DEFAULT_TEXT, settings.text)
    else:
        calibration, evaluation = None, read_text(settings.text or DEFAULT_TEXT, role="evaluation")
    report.say(f"tokenising {evaluation.name}")
    evaluated = tokenise(evaluation, tokenizer, bos=settings.bos, max_tokens=settings.max_tokens)
    held = windows(evaluated, seq_len=settings.seq_len, max_tokens=settings.max_tokens)
    check_vocabulary(held.ids, whole.source.binding.sizes["vocab"])
    if calibration is None or not calibrates:
        return _Texts(held=held, drawn=None, overlap=None)
    tokens = tokenise(calibration, tokenizer)
    drawn = draw(tokens, settings, seq_len=settings.seq_len, source=whole.source)
    found = overlap(evaluated.ids, tokens.ids, drawn.ids)
    if not settings.allow_overlap:
        check_overlap(found, evaluated.ids, tokenizer, calibration=drawn.text, evaluation=held.text, option="--text")
    return _Texts(held=held, drawn=drawn, overlap=found)
