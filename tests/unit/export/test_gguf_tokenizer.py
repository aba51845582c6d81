"""Which tokenizers have a counterpart in llama.cpp, and what the file says of them."""

import json
import string
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateur.errors import UserError
from secateur.export.gguf_tokenizer import BYTE, CONTROL, NORMAL, PRE, UNUSED, USER_DEFINED, vocabulary
from tests.recipes.tokenizers_made import byte_level, sentencepiece


def simple(**changes: Any) -> PreTrainedTokenizerFast:
    """Bytes and no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(alphabet)}, [], **changes))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_byte_level():
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages }}"
    found = vocabulary(tokenizer, 1100)
    assert (found.model, found.pre, len(found.tokens), found.chat_template) == ("gpt2", "gpt-2", 1100, "{{ messages }}")
    for name, kind in {"<s>": CONTROL, "<|user|>": CONTROL, "<tool>": USER_DEFINED, "a": NORMAL, "[PAD1099]": UNUSED}.items():
        assert found.types[found.tokens.index(name)] == kind
    assert found.merges[0].count(" ") == 1
    assert (found.special, found.adds) == ({"bos": 0, "eos": 1}, {"bos": True, "eos": False})
    assert not found.notes


@pytest.mark.parametrize("key", PRE, ids=list(PRE.values()))
def test_the_expression_that_a_text_is_split_by(key: tuple[tuple[str, ...], bool]):
    assert vocabulary(byte_level(*key), 1100).pre == PRE[key]


def test_sentencepiece():
    tokenizer = sentencepiece()
    found = vocabulary(tokenizer, 1100)
    assert (found.model, found.pre, found.merges) == ("llama", None, ())
    assert found.types[found.tokens.index("<0x0A>")] == BYTE
    assert found.adds == {"bos": True, "eos": False, "space": True}
    unions = list(dict.fromkeys("".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]))
    scores = [found.scores[found.tokens.index(name)] for name in unions]
    assert scores[0] == 0
    assert scores == sorted(set(scores), reverse=True)
    assert not found.notes


def test_merges_that_depend_on_the_pair_are_told():
    tokenizer = sentencepiece()
    body = tokenizer.backend_tokenizer
    body.model = models.BPE(body.get_vocab(), [("t", "h")], byte_fallback=True, unk_token="<unk>")
    notes = vocabulary(PreTrainedTokenizerFast(tokenizer_object=body, bos_token="<s>", eos_token="</s>"), 1100).notes
    assert notes == ("some merges depend on the pair and not on its union: llama.cpp may split rare words otherwise",)


def test_composing_first_is_told():
    notes = vocabulary(byte_level(normalizer=normalizers.NFC()), 1100).notes
    assert notes == ("llama.cpp does not compose characters first (NFC), as this tokenizer does",)


def by_letters() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(string.ascii_lowercase)}, []))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (by_letters, "neither byte-level tokens nor byte fallback"),
        (words, "of the type 'WordLevel', and only BPE is known"),
        (lambda: sentencepiece(byte_fallback=False), "neither byte-level tokens nor byte fallback"),
        (lambda: byte_level((r"\w+|\W+",)), r"none of llama.cpp's that are known here: '\\w+|\\W+'"),
        (lambda: byte_level(ignore_merges=True), "none of llama.cpp's that are known here: 'byte-level'"),
        (lambda: byte_level(normalizer=normalizers.Lowercase()), "it normalises a text first (Lowercase)"),
        (lambda: byte_level(prefix=True), "it puts a space in front of a text"),
        (lambda: simple(continuing_subword_prefix="##"), "has a continuing_subword_prefix"),
    ],
    ids=["letters", "words", "characters", "expression", "whole-tokens", "lower-case", "space", "subwords"],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(made: Any, why: str):
    with pytest.raises(UserError, match="Give --no-tokenizer to write the file without one") as refused:
        vocabulary(made(), 1100)
    assert why in str(refused.value)


def test_a_tokenizer_of_another_model():
    with pytest.raises(UserError, match="the model's embedding has 100 rows: they do not belong together"):
        vocabulary(byte_level(), 100)


def test_no_end_of_text_is_told():
    assert "the tokenizer has no end-of-text token" in vocabulary(simple(), 256).notes[0]
