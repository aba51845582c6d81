"""Small tokenizers of every kind that a GGUF file can hold, trained on this Python's own library. No network."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from secateur.calibration.text import read_text
from secateur.export.gguf_tokenizer import DIGITS, GPT2, PRE, SPACE

SIZE = 1000


def _text() -> str:
    scripts = "".join(chr(at) for at in range(0x400, 0x460)) + " Привет мир 你好 naïve größere "
    return read_text("stdlib", role="calibration").body[:300_000] + scripts * 5


def byte_level(steps: tuple[str, ...] = (GPT2,), ignore_merges: bool = False, **changes: Any) -> PreTrainedTokenizerFast:
    """`changes`: `normalizer`, or `prefix` for a space in front."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    level = partial(pre_tokenizers.ByteLevel, add_prefix_space=changes.get("prefix", False))
    made: dict[str, Callable[[], Any]] = {
        DIGITS: lambda: pre_tokenizers.Digits(individual_digits=True), GPT2: lambda: level(use_regex=True),
    }  # fmt: skip
    split = [made[one]() if one in made else pre_tokenizers.Split(Regex(one), "isolated") for one in steps]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split if GPT2 in steps else [*split, level(use_regex=False)])
    tokenizer.normalizer = changes.get("normalizer")
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|user|>"]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_text()], trainer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def sentencepiece(*, metaspace: bool = False, byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """As transformers converts LLaMA-2's: each token is the union of every two tokens that make it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([_text()], trainers.BpeTrainer(vocab_size=SIZE - 300, show_progress=False))
    body = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback)]
    names += sorted(body["vocab"], key=body["vocab"].get)
    vocab = {name: at for at, name in enumerate(names)}
    unions = [left + right for left, right in body["merges"]]
    merges = [(n[:at], n[at:]) for n in unions for at in range(1, len(n)) if n[:at] in vocab and n[at:] in vocab]
    tokenizer = Tokenizer(
        models.BPE(vocab, list(dict.fromkeys(merges)), byte_fallback=byte_fallback, unk_token="<unk>", fuse_unk=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KNOWN: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    **{name: partial(byte_level, *key) for key, name in PRE.items()},
    "sentencepiece": sentencepiece,
    "sentencepiece-metaspace": partial(sentencepiece, metaspace=True),
}
