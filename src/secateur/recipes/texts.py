"""The texts of a job, as the blocks to calibrate on and the windows to evaluate on; they must not be the same text."""

from dataclasses import dataclass

from secateur.calibration.blocks import Blocks, draw_blocks, windows
from secateur.calibration.overlap import Overlap, check_overlap, overlap
from secateur.calibration.text import read_texts
from secateur.calibration.tokens import check_vocabulary, load_tokenizer, tokenise
from secateur.recipes.opening import DEFAULT_TEXT
from secateur.settings import PruneSettings
from secateur.streaming.checkpoint import Checkpoint

EVALUATED = 32_768  # tokens of the perplexity before and after; `secateur eval` takes the whole text


@dataclass(frozen=True, kw_only=True)
class Texts:
    drawn: Blocks
    """Calibration blocks."""
    held: Blocks | None = None
    """Evaluation windows, unless none are wanted."""
    overlap: Overlap | None = None
    """What the evaluation windows share with the calibration text."""


def open_texts(settings: PruneSettings, source: Checkpoint) -> Texts:
    """Read and tokenise both texts. Raises `UserError` where they overlap and that is not allowed."""
    given = settings.evaluation
    calibration, evaluation = read_texts(settings.calibration or DEFAULT_TEXT, None if given == "none" else given)
    tokenizer = load_tokenizer(source.directory, trust_remote_code=settings.trust_remote_code)
    tokens = tokenise(calibration, tokenizer)
    drawn = draw_blocks(tokens, samples=settings.samples, seq_len=settings.seq_len, seed=settings.seed)
    check_vocabulary(drawn.ids, source.binding.sizes["vocab"])
    if given == "none":
        return Texts(drawn=drawn)
    most = max(EVALUATED, settings.seq_len)
    held = windows(tokenise(evaluation, tokenizer, max_tokens=most), seq_len=settings.seq_len, max_tokens=most)
    check_vocabulary(held.ids, source.binding.sizes["vocab"])
    evaluated = held.ids.flatten()  # consecutive windows: the text again
    found = overlap(evaluated, tokens.ids, drawn.ids)
    if not settings.allow_overlap:
        check_overlap(found, evaluated, tokenizer, calibration=drawn.text, evaluation=held.text)
    return Texts(drawn=drawn, held=held, overlap=found)
