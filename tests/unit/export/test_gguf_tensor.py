"""One weight as GGUF has it: its order against a naive one, its numbers within what their type allows."""

from typing import Any

import numpy as np
import pytest
import torch

from secateur.axes import parse
from secateur.errors import UserError
from secateur.export.gguf_tensor import Slot, arrange, decode, encode, kind_of, largest_excess, transposed

KINDS: tuple[Any, ...] = ("f32", "f16", "bf16", "q8_0")


def slot(kind: Any = "f32", shape: tuple[int, ...] = (8, 64), **changes: Any) -> Slot:
    return Slot(name="t", source="w", kind=kind, shape=shape, **changes)


def reader(data: np.ndarray) -> Any:
    at = [0]

    def read(count: int) -> np.ndarray:
        at[0] += count
        return data[at[0] - count : at[0]]

    return read


def test_rows_of_each_head_go_from_halves_into_pairs():
    x = torch.arange(12.0)[:, None] * torch.ones(1, 3)
    found = arrange(x, slot(shape=(12, 3), head_dim=6))
    assert found[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert arrange(x[:, 0], slot(shape=(12,), head_dim=6)).tolist() == found[:, 0].tolist()


def test_what_is_stored_as_in_to_out_is_turned():
    x = torch.arange(6.0).view(2, 3)
    assert arrange(x, slot(shape=(3, 2), transposed=True)).tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("axes", "inner", "turned"),
    [("hidden -> ffn", True, True), ("hidden <- ffn", True, False), ("vocab -> hidden", False, False), ("hidden", True, False)],
)
def test_which_weights_are_stored_as_in_to_out(axes: str, inner: bool, turned: bool):
    assert transposed(parse(axes), inner=inner) is turned


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_come_back_within_what_the_type_allows(kind: Any, stored: torch.dtype):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(stored)
    data = encode(x, slot(kind), "w")
    assert len(data) == slot(kind).num_bytes
    assert largest_excess(x, slot(kind), reader(data)) <= 1
    step = {"f32": 1e-7, "f16": 1e-3, "bf16": 8e-3, "q8_0": 0.02}[kind]
    assert torch.allclose(decode(data, slot(kind)).view(8, 64), x.float(), rtol=step, atol=step)


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_number_is_noticed(kind: Any):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    data = encode(x, slot(kind), "w")
    x[5, 7] *= 1.1
    assert largest_excess(x, slot(kind), reader(data)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_nan_is_noticed(kind: Any):
    x = torch.ones(8, 64)
    data = encode(x, slot(kind), "w")
    data[:4] = np.frombuffer(b"\xff\x7f\xff\x7f", np.uint8)
    assert not largest_excess(x, slot(kind), reader(data)) <= 1


def test_q8_0_is_what_the_reference_says():
    """One block by hand: a step of 2 for the largest number, 254."""
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([254.0, -254.0, 3.0, 5.1])
    data = encode(x, slot("q8_0", (1, 32)), "w")
    assert data[:2].view(np.float16).tolist() == [2.0]
    assert data[2:].view(np.int8)[:4].tolist() == [127, -127, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "shape", "exact", "kind"),
    [
        ("q8_0", (4, 64), False, "q8_0"), ("q8_0", (64, 40), False, "f16"), ("q8_0", (64,), False, "f32"),
        ("f16", (64,), False, "f32"), ("bf16", (4, 64), True, "f32"), ("f16", (4, 7), False, "f16"),
    ],
)  # fmt: skip
def test_the_type_of_a_weight(wanted: Any, shape: tuple[int, ...], exact: bool, kind: str):
    assert kind_of(wanted, shape, exact=exact) == kind


def test_a_number_too_large_for_f16():
    with pytest.raises(UserError, match="w has a number beyond the largest of f16. Give a wider --dtype"):
        encode(torch.full((1, 32), 1e5), slot("f16", (1, 32)), "w")
    assert encode(torch.full((1, 32), 1e5), slot("bf16", (1, 32)), "w").any()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_refused(kind: Any):
    with pytest.raises(UserError, match="w holds NaN or infinity"):
        encode(torch.full((1, 32), torch.nan), slot(kind, (1, 32)), "w")
