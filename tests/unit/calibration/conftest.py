"""Tokenizers of every kind that decides differently where a text may be cut, trained in the test on the built-in text."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from secateur.calibration import stdlib

SPECIAL = ["<unk>", "<s>", "</s>"]


@pytest.fixture(scope="session")
def sample() -> str:
    return stdlib.text("calibration")[:100_000]


def _finish(tokenizer: tokenizers.Tokenizer, trainer, sample: str) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator([sample], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    # A short limit, so that a warning about long texts would show.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )


@pytest.fixture(scope="session")
def byte_level(sample: str) -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, a regular expression cuts words and runs of spaces, offsets trimmed. Adds BOS and EOS."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    return _finish(tokenizer, trainer, sample)


@pytest.fixture(scope="session")
def sentencepiece(sample: str) -> PreTrainedTokenizerFast:
    """LLaMA's kind: the whole text is one word, a dummy space in front, ends stripped."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, max_token_length=12)
    return _finish(tokenizer, trainer, "\n".join(sample.split("\n")[:400]))


@pytest.fixture(scope="session")
def unigram(sample: str) -> PreTrainedTokenizerFast:
    """T5's kind: the likeliest segmentation of a whole word; what stands outside its letters is unknown."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _finish(tokenizer, trainer, sample[:20_000])


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """A token a letter, nothing added: ids can be read off. It has a BOS that it does not use by itself."""
    vocabulary = {symbol: at for at, symbol in enumerate(["<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", model_max_length=8)


@pytest.fixture(scope="session")
def pairs() -> PreTrainedTokenizerFast:
    """Pairs up the letters `a` of a run from its start: `aa` is token 4, `b` token 3."""
    vocabulary = {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "aa": 4}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "a")], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local directory laid out like a hub data set: two splits, two columns, empty rows as in WikiText."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tiny-wiki"
    folder.mkdir()
    for split in ("train", "test"):
        bodies = ["", f" = {split} = \n", "", f" The {split} text . \n"]
        rows = [{"text": body, "title": f"{split} {at}", "number": at} for at, body in enumerate(bodies)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
