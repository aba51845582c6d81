import inspect
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.calibration import stdlib
from secateur.calibration import tokens as tokens_module
from secateur.calibration.text import Text, read_text
from secateur.calibration.tokens import check_vocabulary, load_tokenizer, tokenise
from secateur.errors import UserError

KINDS = ["byte_level", "sentencepiece", "unigram"]
Shared = Callable[[str], Path]


def text_of(body: str) -> Text:
    return Text(name="sample", body=body, joined="as it is")


def whole(tokenizer, body: str) -> list[int]:
    return tokenizer(body, add_special_tokens=False, verbose=False)["input_ids"]


class Watched:
    """A tokenizer that remembers how long the pieces were that it was given."""

    bos_token_id = None

    def __init__(self, tokenizer, *, is_fast: bool = True) -> None:
        self.tokenizer, self.is_fast = tokenizer, is_fast
        self.seen: list[int] = []

    def __call__(self, piece: str, **options):
        assert self.is_fast or "return_offsets_mapping" not in options
        self.seen.append(len(piece))
        return self.tokenizer(piece, **options)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "PIECE", 200)
    monkeypatch.setattr(tokens_module, "OVERLAP", 80)


def test_pieces_are_joined_into_the_tokens_of_the_whole(tokenizer):
    body = stdlib.text("evaluation")[:250_000]
    assert len(body) > 3 * tokens_module.PIECE
    watched = Watched(tokenizer)
    assert tokenise(text_of(body), watched, bos="none").ids.tolist() == whole(tokenizer, body)
    assert max(watched.seen) == tokens_module.PIECE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    parts=st.lists(
        st.sampled_from(["def f(x):", " ", "\n", "    ", "é", "́", "日本", "<s>", "word", "12", "ab" * 40]), max_size=300
    )
)
def test_pieces_of_any_text_are_joined_into_the_tokens_of_the_whole(tokenizer, small_pieces: None, parts: list[str]):
    body = "".join(parts)
    assert tokenise(text_of(body), tokenizer, bos="none").ids.tolist() == whole(tokenizer, body)


@pytest.mark.parametrize("before", ["", "b"], ids=["even", "odd"])
def test_a_piece_grows_where_its_beginning_changes_the_tokens(small_pieces: None, pairs, before: str):
    """A run of one letter, longer than a piece, is paired up from where it starts: a piece inside it cannot know where."""
    watched = Watched(pairs)
    body = before + "a" * 1_000 + "b" * 500
    assert tokenise(text_of(body), watched, bos="none").ids.tolist() == [3] * len(before) + [4] * 500 + [3] * 500
    assert (max(watched.seen) > 1_000) == (before == "b")  # pieces begin at even characters


def test_a_tokenizer_that_is_not_fast_reads_the_whole_text(letters):
    body = "abc " * 50_000
    assert tokenise(text_of(body), Watched(letters, is_fast=False), bos="none").ids.tolist() == whole(letters, body)


@pytest.mark.parametrize("bos", ["auto", "none", "each"])
@pytest.mark.parametrize("max_tokens", [1, 2, 1_000, 30_000])
def test_a_prefix_has_the_first_tokens_of_the_whole(byte_level, bos, max_tokens: int):
    text = text_of(stdlib.text("evaluation")[:300_000])
    every = tokenise(text, byte_level, bos=bos)
    first = tokenise(text, byte_level, bos=bos, max_tokens=max_tokens)
    assert first.ids.tolist() == every.ids[:max_tokens].tolist()
    assert (first.complete, every.complete) == (False, True)


def test_a_prefix_reads_only_what_it_needs(tokenizer):
    watched = Watched(tokenizer)
    tokenise(text_of(stdlib.text("evaluation")), watched, bos="none", max_tokens=100)
    assert sum(watched.seen) <= 2 * tokens_module.PIECE


@pytest.mark.parametrize(("max_tokens", "complete"), [(4, False), (5, True), (6, True)])
def test_complete_tells_whether_all_tokens_are_there(letters, max_tokens: int, complete: bool):
    found = tokenise(text_of("abcde"), letters, bos="none", max_tokens=max_tokens)
    assert (len(found.ids), found.complete) == (min(max_tokens, 5), complete)


def test_bos_auto_begins_as_the_tokenizer_does_and_never_ends(byte_level):
    assert byte_level("hello").input_ids == [1, *whole(byte_level, "hello"), 2]
    found = tokenise(text_of("hello"), byte_level)
    assert found.ids.tolist() == [1, *whole(byte_level, "hello")]
    assert (found.bos, found.bos_id) == ("<s> at the start of the text", None)


def test_bos_auto_adds_nothing_where_the_tokenizer_adds_nothing(letters):
    found = tokenise(text_of("abc"), letters)
    assert found.ids.tolist() == [2, 3, 4]
    assert (found.bos, found.bos_id) == ("no BOS (the tokenizer adds none)", None)


def test_bos_none_adds_nothing(byte_level):
    found = tokenise(text_of("hello"), byte_level, bos="none")
    assert found.ids.tolist() == whole(byte_level, "hello")
    assert found.bos == "no special tokens added"


def test_bos_each_is_left_to_the_windows(letters):
    found = tokenise(text_of("abc"), letters, bos="each")
    assert found.ids.tolist() == [2, 3, 4]
    assert (found.bos, found.bos_id) == ("<s> at the start of every window", 1)


def test_bos_each_needs_a_bos(letters, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(letters, "_special_tokens_map", {**letters._special_tokens_map, "bos_token": None})
    assert letters.bos_token_id is None
    with pytest.raises(UserError, match="this tokenizer has none"):
        tokenise(text_of("abc"), letters, bos="each")


def test_an_unknown_bos(letters):
    with pytest.raises(UserError, match=r"'always'\. Allowed: auto, none, each"):
        inspect.unwrap(tokenise)(text_of("abc"), letters, bos="always")


def test_no_tokens_at_all(letters):
    with pytest.raises(UserError, match="--max-tokens is 0"):
        tokenise(text_of("abc"), letters, max_tokens=0)


def test_a_text_longer_than_the_model_gives_no_warning(byte_level, caplog: pytest.LogCaptureFixture):
    assert byte_level.model_max_length == 64
    transformers.utils.logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(tokenise(text_of("many words " * 100), byte_level).ids) > 64
        assert not caplog.records
        byte_level("many words " * 100)
        assert "longer than the specified maximum" in caplog.text  # so it would have been seen
    finally:
        transformers.utils.logging.disable_propagation()


def test_the_reporter_sees_every_piece(letters):
    class Counting:
        seen: list

        def say(self, text: str) -> None: ...
        def warn(self, text: str) -> None: ...
        def track(self, items: Iterable, label: str, total: int | None = None):
            self.seen = [label, total, 0]
            for item in items:
                self.seen[2] += 1
                yield item

    reporter = Counting()
    tokenise(text_of("abc " * 100_000), letters, reporter=reporter)
    assert reporter.seen == ["tokenising sample", 7, 7]


def test_check_vocabulary():
    check_vocabulary(torch.tensor([[0, 9], [3, 4]]), 10)
    with pytest.raises(UserError, match="token id 10, but the model's embedding has only 10 rows"):
        check_vocabulary(torch.tensor([[0, 10], [3, 4]]), 10)


def test_check_vocabulary_of_nothing():
    check_vocabulary(torch.zeros(0, dtype=torch.long), 10)


def test_a_saved_tokenizer_loads(byte_level, tmp_path: Path):
    byte_level.save_pretrained(tmp_path)
    assert tokenise(text_of("hello"), load_tokenizer(tmp_path)).ids.tolist() == [1, *whole(byte_level, "hello")]


@pytest.mark.parametrize("config", [None, {"model_type": "gpt2"}])
def test_a_directory_without_tokenizer_says_what_was_looked_for(tmp_path: Path, config):
    """transformers itself makes a tokenizer of one token for a gpt2 without files."""
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no tokenizer in .*looked for tokenizer\.json, tokenizer\.model, vocab\.json"):
        load_tokenizer(tmp_path)


def test_no_directory_at_all(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer in"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}'])
def test_a_broken_tokenizer(tmp_path: Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot be loaded \(.*Files found: tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_code_beside_a_tokenizer_does_not_run_unless_asked_for(letters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    letters.save_pretrained(model)
    ran = tmp_path / "ran"
    (model / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="allow that with --trust-remote-code"):
        load_tokenizer(model)
    assert not ran.exists()
    assert type(load_tokenizer(model, trust_remote_code=True)).__name__ == "Own"
    assert ran.exists()


@pytest.mark.parametrize("model", ["stories260K", "babyllama", "wiki-llama-4m"])
def test_real_tokenizers_give_the_tokens_of_the_whole(shared: Shared, model: str):
    text = read_text(str(shared("data/wikitext2/valid.raw.txt")), role="evaluation")
    tokenizer = load_tokenizer(shared(f"models/{model}"))
    expected = tokenizer(text.body, verbose=False)["input_ids"]  # these add a BOS or nothing, and no EOS
    assert tokenise(text, tokenizer).ids.tolist() == expected
    assert tokenise(text, tokenizer, max_tokens=40_000).ids.tolist() == expected[:40_000]


def test_a_tokenizer_of_another_model_is_found_out(shared: Shared, tmp_path: Path):
    """stories260K has 512 embedding rows, the other tokenizer 4,096 tokens."""
    for file in shared("models/wiki-llama-4m").glob("tokenizer*"):
        shutil.copy(file, tmp_path / file.name)
    ids = tokenise(text_of("Once upon a time there was a tokenizer"), load_tokenizer(tmp_path)).ids
    with pytest.raises(UserError, match="only 512 rows"):
        check_vocabulary(ids, 512)
