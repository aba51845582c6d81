import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.calibration.blocks import draw_blocks, windows
from secateur.calibration.text import Text, hold_out, read_text
from secateur.calibration.tokens import Tokens, load_tokenizer, tokenise
from secateur.errors import UserError


def tokens_of(count: int, *, bos_id: int | None = None, complete: bool = True) -> Tokens:
    bos = "no BOS" if bos_id is None else "<s> at the start of every window"
    return Tokens(
        ids=torch.arange(count), name="a.txt", joined="as it is in the file", bos=bos, bos_id=bos_id, complete=complete
    )


@given(count=st.integers(2, 300), seq_len=st.integers(2, 20), seed=st.integers(0, 2**40), data=st.data())
def test_a_draw_takes_whole_windows_once_each_in_order(count: int, seq_len: int, seed: int, data):
    most = count // seq_len
    if most == 0:
        return
    samples = data.draw(st.integers(1, most))
    blocks = draw_blocks(tokens_of(count), samples=samples, seq_len=seq_len, seed=seed)
    starts = blocks.ids[:, 0]
    assert blocks.ids.shape == (samples, seq_len)
    assert torch.equal(blocks.ids, starts[:, None] + torch.arange(seq_len))
    assert (starts % seq_len == 0).all()
    assert (starts.diff() > 0).all()
    assert (blocks.seq_len, blocks.num_tokens) == (seq_len, samples * seq_len)


def test_the_seed_decides_the_draw():
    def drawn(seed: int, samples: int = 8):
        return draw_blocks(tokens_of(1_000), samples=samples, seq_len=10, seed=seed)

    assert drawn(0).fingerprint == drawn(0).fingerprint
    assert drawn(0).fingerprint != drawn(1).fingerprint
    assert set(drawn(0, 8).ids[:, 0].tolist()) < set(drawn(0, 20).ids[:, 0].tolist())


def test_a_draw_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = draw_blocks(tokens_of(1_000), samples=8, seq_len=10, seed=0).fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert draw_blocks(tokens_of(1_000), samples=8, seq_len=10, seed=0).fingerprint == first


def test_every_window_is_as_likely():
    counts = torch.zeros(10)
    for seed in range(500):
        starts = draw_blocks(tokens_of(29), samples=3, seq_len=3, seed=seed).ids[:, 0] // 3
        counts[starts] += 1
    assert counts[9] == 0  # 29 tokens hold 9 windows of 3
    assert ((counts[:9] - 500 / 3).abs() < 4 * (500 * 2 / 9) ** 0.5).all()


def test_consecutive_windows_drop_the_tail():
    blocks = windows(tokens_of(11), seq_len=4)
    assert blocks.ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert blocks.text == "a.txt"
    assert blocks.protocol == (
        "2 consecutive non-overlapping windows of 4 tokens (8 in all; a tail of 3 dropped), of a.txt; "
        "text as it is in the file, tokenised once; no BOS"
    )


@pytest.mark.parametrize(("max_tokens", "count"), [(4, 1), (7, 1), (8, 2), (100, 2)])
def test_max_tokens_limits_the_windows(max_tokens: int, count: int):
    blocks = windows(tokens_of(11), seq_len=4, max_tokens=max_tokens)
    assert len(blocks.ids) == count
    assert ("the rest of the text is not used" in blocks.protocol) == (count == 1)


def test_a_text_that_was_not_read_to_its_end_has_no_tail():
    assert "the rest of the text is not used" in windows(tokens_of(11, complete=False), seq_len=4).protocol


def test_bos_at_the_start_of_every_window():
    evaluated = windows(tokens_of(11, bos_id=99), seq_len=4)
    assert evaluated.ids.tolist() == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
    assert evaluated.protocol.endswith("; <s> at the start of every window")
    assert "(12 in all; a tail of 2 dropped)" in evaluated.protocol
    assert len(windows(tokens_of(11, bos_id=99), seq_len=4, max_tokens=11).ids) == 2
    drawn = draw_blocks(tokens_of(11, bos_id=99), samples=3, seq_len=4, seed=0)
    assert torch.equal(drawn.ids, evaluated.ids)


def test_the_fingerprint_is_of_shape_and_ids_alone():
    ids = [[0, 1, 2, 3], [4, 5, 6, 7]]
    expected = hashlib.sha256(b"(2, 4)" + b"".join(i.to_bytes(8, "little") for row in ids for i in row)).hexdigest()
    assert windows(tokens_of(11), seq_len=4).fingerprint == expected
    assert draw_blocks(tokens_of(8), samples=2, seq_len=4, seed=7).fingerprint == expected
    assert windows(tokens_of(8), seq_len=2).fingerprint != expected
    narrow = Tokens(ids=torch.arange(8, dtype=torch.int32), name="b", joined="", bos="", bos_id=None, complete=True)
    assert windows(narrow, seq_len=4).fingerprint == expected


def test_the_protocol_of_a_draw():
    assert draw_blocks(tokens_of(11), samples=1, seq_len=4, seed=5).protocol == (
        "1 of 2 non-overlapping windows of 4 tokens, drawn with seed 5, of a.txt; "
        "text as it is in the file, tokenised once; no BOS"
    )


@pytest.mark.parametrize(
    ("count", "samples", "seq_len", "said"),
    [
        (
            1_000, 16, 128,
            "it has 1,000 tokens, and 16 samples of 128 tokens need 2,048. Give fewer --samples (at most 7), "
            "a smaller --seq-len (at most 62), or a longer text.",
        ),
        (100, 2, 128, "it has 100 tokens, and 2 samples of 128 tokens need 256. Give a smaller --seq-len (at most 50), or a l"),
        (20, 16, 8, "Give fewer --samples (at most 2), or a longer text."),
        (5, 16, 8, "it has 5 tokens, and 16 samples of 8 tokens need 128. Give a longer text."),
    ],
)  # fmt: skip
def test_a_calibration_text_that_is_too_short(count: int, samples: int, seq_len: int, said: str):
    with pytest.raises(UserError) as caught:
        draw_blocks(tokens_of(count), samples=samples, seq_len=seq_len, seed=0)
    assert said in str(caught.value)


@given(count=st.integers(0, 60), samples=st.integers(1, 12), seq_len=st.integers(2, 12), bos=st.booleans())
def test_what_the_error_advises_works(count: int, samples: int, seq_len: int, bos: bool):
    tokens = tokens_of(count, bos_id=99 if bos else None)
    try:
        draw_blocks(tokens, samples=samples, seq_len=seq_len, seed=0)
    except UserError as error:
        numbers = [int(part.split(")")[0]) for part in str(error).split("at most ")[1:]]
        if "fewer --samples" in str(error):
            draw_blocks(tokens, samples=numbers.pop(0), seq_len=seq_len, seed=0)
        if "smaller --seq-len" in str(error):
            assert numbers[0] < seq_len
            draw_blocks(tokens, samples=samples, seq_len=numbers[0], seed=0)
    else:
        assert count >= samples * (seq_len - bos)


@pytest.mark.parametrize(
    ("count", "seq_len", "bos_id", "said"),
    [
        (
            100,
            128,
            None,
            "it has 100 tokens, and one window of 128 tokens needs 128. Give a smaller --seq-len (at most 100), or a lo",
        ),
        (
            100,
            128,
            1,
            "it has 100 tokens, and one window of 128 tokens needs 127. Give a smaller --seq-len (at most 101), or a lo",
        ),
        (1, 128, None, "it has 1 tokens, and one window of 128 tokens needs 128. Give a longer text."),
    ],
)
def test_an_evaluation_text_that_is_too_short(count: int, seq_len: int, bos_id: int | None, said: str):
    with pytest.raises(UserError) as caught:
        windows(tokens_of(count, bos_id=bos_id), seq_len=seq_len)
    assert said in str(caught.value)


def test_less_than_one_window_asked_for():
    with pytest.raises(UserError, match="--max-tokens 100 is less than one window of --seq-len 128"):
        windows(tokens_of(1_000), seq_len=128, max_tokens=100)


@pytest.mark.parametrize("seq_len", [1, 0, -3])
def test_a_window_must_have_something_to_predict(seq_len: int):
    with pytest.raises(UserError, match=f"--seq-len is {seq_len}. Give at least 2"):
        windows(tokens_of(100), seq_len=seq_len)
    with pytest.raises(UserError, match=f"--seq-len is {seq_len}. Give at least 2"):
        draw_blocks(tokens_of(100), samples=1, seq_len=seq_len, seed=0)


@pytest.mark.parametrize("samples", [0, -1])
def test_a_draw_takes_at_least_one(samples: int):
    with pytest.raises(UserError, match=f"--samples is {samples}. Give at least 1"):
        draw_blocks(tokens_of(100), samples=samples, seq_len=2, seed=0)


def test_held_out_windows_share_no_token_with_the_calibration(letters):
    body = "".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(1_000))
    calibration, evaluation = hold_out(Text(name="a.txt", body=body, joined="as it is"))
    drawn = draw_blocks(tokenise(calibration, letters), samples=80, seq_len=10, seed=0)
    measured = windows(tokenise(evaluation, letters), seq_len=10)
    assert (drawn.num_tokens, measured.num_tokens) == (800, 200)
    assert (
        drawn.ids.flatten().tolist() + measured.ids.flatten().tolist()
        == tokenise(Text(name="", body=body, joined=""), letters).ids.tolist()
    )
    assert "of first four fifths of a.txt" in drawn.protocol
    assert "of held-out last fifth of a.txt" in measured.protocol


def test_the_windows_of_the_published_wikitext2_protocol(shared: Callable[[str], Path]):
    text = read_text(str(shared("data/wikitext2/test.raw.txt")), role="evaluation")
    tokenizer = load_tokenizer(shared("models/stories260K"))
    blocks = windows(tokenise(text, tokenizer), seq_len=128)
    expected = torch.tensor(tokenizer(text.body, verbose=False)["input_ids"])
    assert blocks.ids[0, 0] == tokenizer.bos_token_id
    assert torch.equal(blocks.ids.flatten(), expected[: len(expected) // 128 * 128])
