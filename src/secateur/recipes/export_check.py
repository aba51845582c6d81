"""A GGUF file run by llama.cpp, beside the checkpoint run by Hugging Face's layers: do they say the same?"""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from secateur.calibration.text import Text, read_text
from secateur.calibration.tokens import Tokenizer, check_vocabulary, load_tokenizer, tokenise
from secateur.errors import UserError
from secateur.export.gguf_arch import context_length
from secateur.export.gguf_tokenizer import WAY_OUT, Vocabulary
from secateur.export.llama_cpp import Answer, run
from secateur.export_settings import ExportSettings
from secateur.reporter import Reporter
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.hidden import HiddenStates
from secateur.streaming.walk import Walk

LIMITS = {"f32": 0.01, "f16": 0.01, "bf16": 0.05, "q8_0": 0.1}
"""Largest error of the logits that the type and llama.cpp's own arithmetic explain, as a fraction of their spread."""
DEFAULT_TEXT = "stdlib"
CHARACTERS = 40  # of a text, for each token that is wanted
PIECE = 200  # characters that are split into tokens at once
ALIKE = 0.98  # of the pieces, at least, must both split alike
# What tokenizers differ in: digits, contractions, runs of spaces and lines, other scripts, marks, emoji.
SAMPLES = (
    "Hello world", "It's 1234567 o'clock, WE'LL see; he'd said: \"don't\"", "a  b   c\n\n\n  d\t\te \n", " leading and trailing ",
    "def f(x):\n    return x**2  # ok\n", "Fünf größere Straßen, naïve café", "Привет, мир! 你好世界 こんにちは",
    "e\u0301 \u00e9 🙂🙃 ½ ٣٤",
    "http://example.org/?q=1&r=2", "",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of llama.cpp with Hugging Face, both on the CPU, on `tokens` tokens.

    `top_1`: the fraction of positions where both find the same token likeliest. `error`: root mean square difference of the
    logits, as a fraction of their spread. `largest_difference` is of one logit. Perplexities are of the same tokens.
    `texts_alike`: the fraction of pieces of the text that both split into the same tokens; None where the file has no tokenizer.
    """

    llama_cpp: str
    tokens: int
    text: str
    top_1: float
    error: float
    largest_difference: float
    perplexity_hugging_face: float
    perplexity_llama_cpp: float
    texts_alike: float | None
    texts_split_otherwise: tuple[str, ...]


def agreement(
    path: Path, settings: ExportSettings, source: Checkpoint, vocabulary: Vocabulary | None, report: Reporter
) -> Agreement:
    """Raises `UserError` where the file's logits are further off than its type explains, or a text is split otherwise."""
    tokenizer = None
    name, windows, pieces = "random tokens", _random(settings, source), []
    if vocabulary is not None:
        tokenizer = load_tokenizer(source.directory, trust_remote_code=settings.trust_remote_code)
        name, windows, pieces = _windows(settings, source, tokenizer)
    report.say(f"running llama.cpp and Hugging Face on {windows.numel()} tokens of {name}")
    texts = [*pieces, *SAMPLES] if tokenizer is not None else []
    answer = run(path, windows, texts)
    other = [not _split_alike(tokenizer, text, ids) for text, ids in zip(texts, answer.tokens, strict=True)]
    alike = 1 - sum(other[: len(pieces)]) / len(pieces) if pieces else None
    if alike is not None and alike < ALIKE:
        first = pieces[other.index(True)]
        raise UserError(
            f"llama.cpp splits {1 - alike:.0%} of the text {name} into other tokens than the model's tokenizer, at first in "
            f"{first!r}. {WAY_OUT}"
        )
    otherwise = tuple(text for text, is_other in zip(texts, other, strict=True) if is_other and text in SAMPLES)
    found = measured(answer, hugging_face(source, windows), windows, text=name, texts_alike=alike, otherwise=otherwise)
    if not found.error <= LIMITS[settings.dtype]:
        raise UserError(
            f"llama.cpp says something else than Hugging Face: their logits differ by {found.error:.1%} of their spread, and "
            f"{settings.dtype} explains {LIMITS[settings.dtype]:.0%}; the likeliest token is the same on {found.top_1:.1%} of "
            f"{found.tokens} positions. Nothing was published. Give a wider --dtype; if that is no better, please report it with "
            f"the model's config.json."
        )
    return found


def measured(
    answer: Answer, exact: Float[Tensor, "window token vocab"], windows: Int[Tensor, "window token"], *, text: str,
    texts_alike: float | None = None, otherwise: tuple[str, ...] = (),
) -> Agreement:  # fmt: skip
    logits = answer.logits
    difference, centred = logits - exact, exact - exact.mean(-1, keepdim=True)
    shifted = difference - difference.mean(-1, keepdim=True)  # a constant on all logits changes nothing
    spread = max(float(centred.double().square().mean().sqrt()), 1e-30)
    return Agreement(
        llama_cpp=answer.version, tokens=windows.numel(), text=text,
        top_1=float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
        error=float(shifted.double().square().mean().sqrt()) / spread,
        largest_difference=float(difference.abs().max()),
        perplexity_hugging_face=_perplexity(exact, windows), perplexity_llama_cpp=_perplexity(logits, windows),
        texts_alike=texts_alike, texts_split_otherwise=otherwise,
    )  # fmt: skip


@torch.no_grad()
def hugging_face(source: Checkpoint, windows: Int[Tensor, "window token"]) -> Float[Tensor, "window token vocab"]:
    """Logits by Hugging Face's layers in float32, one layer in memory at a time."""
    walk = Walk.over(source, device=torch.device("cpu"), dtype=torch.float32)
    hidden = HiddenStates((len(windows), windows.shape[1], walk.binding.sizes["hidden"]), torch.float32)
    walk.start(windows, hidden)
    for layer in walk.layers(hidden):
        hidden.forget(layer)
    out = torch.empty(*windows.shape, walk.binding.sizes["vocab"])
    for first, position, logits in walk.logits(hidden):
        out[first : first + len(logits), position : position + logits.shape[1]] = logits
    return out


def _perplexity(logits: Float[Tensor, "window token vocab"], windows: Int[Tensor, "window token"]) -> float:
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    return math.exp(min(float(loss), 700.0))


def _random(settings: ExportSettings, source: Checkpoint) -> Int[Tensor, "window token"]:
    shape = _shape(settings.check_tokens, settings, source)
    return torch.randint(0, source.binding.sizes["vocab"], shape, generator=torch.Generator().manual_seed(0))


def _windows(settings: ExportSettings, source: Checkpoint, tokenizer: Tokenizer) -> tuple[str, Tensor, list[str]]:
    """What it is called, windows of equal length, and the text that they are of in pieces, every run of spaces as one."""
    text = read_text(settings.text or DEFAULT_TEXT, role="evaluation")
    body = text.body[: CHARACTERS * settings.check_tokens].rpartition(" ")[0] or text.body
    found = tokenise(Text(name=text.name, body=body, joined=text.joined), tokenizer)
    check_vocabulary(found.ids, source.binding.sizes["vocab"])
    count, length = _shape(min(settings.check_tokens, len(found.ids)), settings, source)
    return text.name, found.ids[: count * length].view(count, length), textwrap.wrap(" ".join(body.split()), PIECE)


def _shape(tokens: int, settings: ExportSettings, source: Checkpoint) -> tuple[int, int]:
    windows = max(1, math.ceil(tokens / context_length(source.binding.config)[0]))
    length = tokens // windows
    if length < 2:
        raise UserError(f"the text {settings.text!r} has {tokens} tokens, and 2 at least are needed. Give a longer --text.")
    return windows, length


def _split_alike(tokenizer: Any, text: str, ids: tuple[int, ...]) -> bool:
    return tuple(tokenizer(text, verbose=False)["input_ids"]) == ids
