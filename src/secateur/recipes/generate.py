"""Greedy continuations of prompts, by a whole model or one that is pruned anew for them."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.calibration.blocks import Blocks
from secateur.calibration.text import Text, read_text
from secateur.calibration.tokens import Tokenizer, check_vocabulary, load_tokenizer, tokenise
from secateur.dynamic_settings import GenerateSettings
from secateur.errors import UserError
from secateur.recipes.dynamic import Dynamic, Whole, draw, kept, read_state, restore
from secateur.recipes.opening import DEFAULT_TEXT
from secateur.reporter import Reporter
from secateur.runtime.refit_state import RefitState
from secateur.runtime.state import State


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """`completions`: prompt, text (what follows it) and new_tokens of each. `seconds`: of generating alone, prompts included."""

    model: str
    ratio: float | None
    small: str | None
    widths: dict[str, dict[str, int]] | None
    """Units that stay in a pruned layer, and of how many; None for the whole model."""
    calibration: str | None
    completions: list[dict[str, Any]]
    new_tokens: int
    seconds: float
    tokens_per_second: float
    dtype: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def generate(settings: GenerateSettings, report: Reporter) -> GenerateResult:
    """Continue the prompts. Raises `UserError` for a model, a state or a text that cannot be used."""
    whole = Whole.open(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code
    )
    tokenizer = load_tokenizer(whole.source.directory, trust_remote_code=settings.trust_remote_code)
    prompts = [_prompt(text, tokenizer, whole) for text in settings.prompt]
    _check_room(settings, max(map(len, prompts)), whole)
    widths, calibration = None, None
    if not settings.probes or (settings.dynamic == 0 and whole.source.layers):  # 0 of unequal layers is all of them
        model = whole.load()
    else:
        known = _known(settings, whole, tokenizer, report)
        model = whole.probed(settings, rechoose=settings.rechoose)
        widths, calibration = kept(model), _calibrated(model, known, settings, report)
    end = _ends(model)
    pad = next((i for i in (tokenizer.pad_token_id, *end) if i is not None), 0)
    ids, mask = padded(prompts, pad)
    start = time.perf_counter()
    out = model.generate(
        ids.to(whole.device), attention_mask=mask.to(whole.device), max_new_tokens=settings.max_new_tokens,
        do_sample=False, num_beams=1, pad_token_id=pad,
    )  # fmt: skip
    new = [_until(row, end) for row in out[:, ids.shape[1] :].tolist()]
    seconds = time.perf_counter() - start
    total = sum(map(len, new))
    return GenerateResult(
        model=settings.model, ratio=settings.dynamic, small=settings.small, widths=widths, calibration=calibration,
        completions=[
            {"prompt": text, "text": continuation(tokenizer, before.tolist(), after), "new_tokens": len(after)}
            for text, before, after in zip(settings.prompt, prompts, new, strict=True)
        ],
        new_tokens=total, seconds=seconds, tokens_per_second=total / seconds, dtype=str(whole.dtype).removeprefix("torch."),
    )  # fmt: skip


def padded(prompts: Sequence[Int[Tensor, "_"]], pad: int) -> tuple[Int[Tensor, "prompt token"], Int[Tensor, "prompt token"]]:
    """One batch, every prompt's end at its end; and where the prompts are."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def continuation(tokenizer: Tokenizer, before: list[int], after: list[int]) -> str:
    """What follows the prompt: decoded alone it could lose the space in front of it."""
    start = tokenizer.decode(before, skip_special_tokens=True)
    whole = tokenizer.decode(before + after, skip_special_tokens=True)
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(after, skip_special_tokens=True)


def _prompt(text: str, tokenizer: Tokenizer, whole: Whole) -> Tensor:
    ids = tokenise(Text(name="the prompt", body=text, joined="as given"), tokenizer).ids
    if not len(ids):
        raise UserError(f"the prompt {text!r} has no tokens. Give a prompt with words in it.")
    check_vocabulary(ids, whole.source.binding.sizes["vocab"])
    return ids


def _check_room(settings: GenerateSettings, longest: int, whole: Whole) -> None:
    binding = whole.source.binding
    if "position" in binding.sizes and longest + settings.max_new_tokens > (most := binding.config.max_position_embeddings):
        raise UserError(
            f"the longest prompt has {longest} tokens and --max-new-tokens is {settings.max_new_tokens}, and this "
            f"{binding.model_type} model has {most} positions. Give a shorter prompt, or fewer new tokens."
        )


def _known(
    settings: GenerateSettings, whole: Whole, tokenizer: Tokenizer, report: Reporter
) -> State | RefitState | Blocks | None:
    """What the model will know of its channels: a saved state, blocks to calibrate on, or nothing where nothing leaves."""
    if not whole.leaves(settings):
        if settings.save_state is not None:
            raise UserError(
                f"--save-state {settings.save_state} was given, and {_why(settings)}, so there is no state. Prune more, or leave it "
                "out."
            )
        report.say(f"{_why(settings)}, so nothing is calibrated")
        return None
    if not whole.learns(settings):
        return None
    if settings.state is not None:
        return read_state(settings)
    if settings.save_state is not None and not settings.save_state.absolute().parent.is_dir():
        raise UserError(
            f"--save-state {settings.save_state}: there is no directory {settings.save_state.parent}. Make it first."
        )
    text = read_text(settings.calibration or DEFAULT_TEXT, role="calibration")
    report.say(f"tokenising {text.name}")
    return draw(tokenise(text, tokenizer), settings, seq_len=settings.seq_len, source=whole.source)


def _why(settings: GenerateSettings) -> str:
    if settings.small is not None:
        return f"{settings.small} lost no MLP channel"
    return f"at a ratio of {settings.dynamic} nothing leaves this model"


def _calibrated(
    model: Dynamic, known: State | RefitState | Blocks | None, settings: GenerateSettings, report: Reporter
) -> str | None:
    """Let the model know it, and say what it was."""
    if isinstance(known, State | RefitState):
        assert settings.state is not None
        return restore(model, known, settings.state)
    if known is None:
        return None
    report.say(f"calibrating on {known.text}")
    model.calibrate(known.ids)
    if settings.save_state is not None:
        model.state.save(settings.save_state)
    return known.protocol


def _ends(model: Any) -> list[int]:
    given = model.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def _until(row: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first that ends a text, which is one of them."""
    first = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: first + 1]
