"""A tiny random checkpoint on disk, complete with a tokenizer, and a text that it can tokenise. No network."""

import random
import string
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.contract.tiny import tiny_model

SYMBOLS = ["<unk>", "<s>", "</s>", *string.ascii_lowercase, " ", "\n", ".", ","]  # 33 of the tiny models' 64 token ids
WORDS = 1000
TINY: dict[str, Any] = {"samples": 4, "seq_len": 16, "evaluation": "none"}
"""Settings that fit the text's length and the models' 32 positions, without the perplexities, which take half the time."""


def tiny_checkpoint(
    model_type: str, tmp_path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, shard: str = "50GB", **overrides: Any
) -> Path:
    """A model directory `tmp_path/model` as `save_pretrained` writes it, and `tmp_path/text.txt` beside it.

    `overrides` are the configuration's; two layers unless they say otherwise. `shard`: largest size of a weight file.
    """
    directory = tmp_path / "model"
    model: Any = tiny_model(model_type, dtype=dtype, seed=seed, **overrides)
    model.save_pretrained(directory, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(directory)
    text_beside(directory).write_text(tiny_text())
    return directory


def text_beside(directory: Path) -> Path:
    """The text of a checkpoint made here: about 4,500 letters, one token each."""
    return directory.parent / "text.txt"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter, `<s>` in front; anything but lower-case words is unknown."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={symbol: at for at, symbol in enumerate(SYMBOLS)}, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=32
    )


def tiny_text(words: int = WORDS, seed: int = 0) -> str:
    drawn = random.Random(seed)
    lengths = (drawn.randint(1, 6) for _ in range(words))
    return " ".join("".join(drawn.choices(string.ascii_lowercase, k=length)) for length in lengths) + ".\n"
