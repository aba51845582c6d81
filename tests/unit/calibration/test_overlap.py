"""What the evaluated text shares with the calibration text, against sets of tuples."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.calibration import overlap as module
from secateur.calibration.overlap import ALLOWED, SHINGLE, check_overlap, overlap, shingle_hashes
from secateur.errors import UserError


def shingles(ids: list[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + SHINGLE]) for i in range(len(ids) - SHINGLE + 1)]


def tensor(ids: list[int], *shape: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long).view(*shape) if shape else torch.tensor(ids, dtype=torch.long)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two texts put together from pieces of a third, of few or many words, so that runs are shared and repeated."""
    words = draw(st.sampled_from([1, 2, 50_000]))
    pool = draw(st.lists(st.integers(0, words - 1), min_size=200, max_size=200))
    pieces = st.lists(st.tuples(st.integers(0, 160), st.integers(1, 90)), min_size=1, max_size=4)
    evaluated, calibration = ([w for at, length in draw(pieces) for w in pool[at : at + length]] for _ in range(2))
    return evaluated, calibration


@given(texts(), st.integers(1, 60), st.sampled_from([1, 7, 64, 2**18]))
def test_counts_are_those_of_sets(pair: tuple[list[int], list[int]], width: int, chunk: int) -> None:
    evaluated, calibration = pair
    rows = max(1, len(calibration) // width)
    width = min(width, len(calibration))
    drawn = [calibration[i * width : (i + 1) * width] for i in range(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = overlap(tensor(evaluated), tensor(calibration), tensor(calibration[: rows * width], rows, width))
    own, text, blocks = set(shingles(evaluated)), set(shingles(calibration)), {s for b in drawn for s in shingles(b)}
    assert (found.shingles, found.in_text, found.in_blocks) == (len(own), len(own & text), len(own & blocks))
    first = next((i for i, s in enumerate(shingles(evaluated)) if s in text), None)
    assert found.example == first
    assert found.fraction == (len(own & text) / len(own) if own else 0)


@given(
    st.lists(st.integers(0, 300_000), min_size=SHINGLE, max_size=SHINGLE), st.integers(0, SHINGLE - 1), st.integers(1, 2**40)
)
def test_a_shingle_with_one_other_token_or_two_swapped_has_another_hash(ids: list[int], at: int, by: int) -> None:
    other = [*ids]
    other[at] += by
    swapped = [*ids]
    swapped[at], swapped[at - 1] = ids[at - 1], ids[at]
    hashes = [int(shingle_hashes(tensor(x))) for x in (ids, other, swapped)]
    assert hashes[0] != hashes[1]
    assert (hashes[0] == hashes[2]) == (ids == swapped)


def test_a_text_of_millions_of_tokens_takes_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    calibration = torch.randint(32_000, (4_000_000,), generator=generator)
    evaluated = torch.cat([calibration[3_900_000:3_901_031], torch.randint(32_000, (31_000,), generator=generator)])
    start = time.perf_counter()
    found = overlap(evaluated, calibration, calibration[: 128 * 128].view(128, 128))
    assert time.perf_counter() - start < 20
    assert (found.in_text, found.in_blocks, found.example) == (1000, 0, 0)


class Letters:
    def decode(self, ids: torch.Tensor) -> str:
        return "".join(chr(97 + int(i)) for i in ids)


def test_what_is_refused_and_what_is_said() -> None:
    evaluated = torch.arange(1031)
    allowed = int(1000 * ALLOWED)
    for shared, refused in ((0, False), (allowed, False), (allowed + 1, True)):
        calibration = torch.cat([torch.full((40,), 5000), evaluated[50 : 50 + shared + SHINGLE - 1]])
        found = overlap(evaluated, calibration, calibration[None])
        assert (found.shingles, found.in_text, found.in_blocks) == (1000, shared, shared)
        if refused:
            with pytest.raises(UserError) as caught:
                check_overlap(found, evaluated % 26, Letters(), calibration="a.txt", evaluation="b.txt")
            message = str(caught.value)
            assert "5.1% of its runs of 32 tokens" in message and "(a.txt)" in message and "(b.txt)" in message
            assert "at token 50: 'yzabcdef" in message and "At most 5% is allowed" in message and "--allow-overlap" in message
        else:
            check_overlap(found, evaluated, Letters(), calibration="a.txt", evaluation="b.txt")


def test_the_record_of_it() -> None:
    ids = torch.arange(64)
    assert overlap(ids, ids, ids[:32].view(1, 32)).to_json() == {
        "shingle_tokens": 32, "shingles": 33, "in_calibration_text_ratio": 1.0, "in_calibration_blocks_ratio": 1 / 33,
        "allowed_ratio": 0.05,
    }  # fmt: skip
    assert overlap(ids[:10], ids, ids.view(1, 64)).to_json()["in_calibration_text_ratio"] == 0
