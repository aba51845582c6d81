import math

import pytest
import torch

from secateur.criteria import unit
from secateur.criteria.criterion import ranked_as, z_scores
from tests.contract.groups import CASES, SIZES, make_case


@pytest.mark.parametrize(("layout", "axis"), CASES)
def test_the_reader_is_read_outputs_first_whichever_way_it_is_stored(layout, axis):
    group = make_case(layout, axis).group
    columns = (
        SIZES["ffn"]
        if axis == "ffn"
        else SIZES["kv"] * SIZES["head_dim"] * (1 if layout in ("gpt2", "neox") else SIZES["group"])
    )
    assert group.reader_matrix.shape == (SIZES["hidden"], columns)
    assert group.reader_matrix.dtype == torch.float64
    stored = group.reader.value if layout != "gpt2" else group.reader.value.T
    assert torch.equal(group.reader_matrix, stored)
    assert group.columns_per_unit * group.num_units == columns
    assert group.attention == (axis != "ffn")


def test_biases_belong_to_the_group_but_are_no_matrices():
    group = make_case("gpt2", "kv").group
    assert set(group.weights) == {"attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"}
    assert [m.name for m in group.matrices] == ["attn.c_attn.weight", "attn.c_proj.weight"]


def test_query_heads_do_not_own_the_keys_and_values_they_share():
    group = make_case("llama", "group").group
    assert set(group.weights) == {"self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.o_proj.weight"}
    assert group.num_units == SIZES["kv"] * SIZES["group"]


def test_reductions():
    group = make_case("neox", "kv").group
    columns = torch.arange(15, dtype=torch.float64)
    assert group.reduce(columns, "sum").tolist() == [10, 35, 60]
    assert group.reduce(columns, "mean").tolist() == [2, 7, 12]
    assert group.reduce(columns, "l2").tolist() == pytest.approx([30**0.5, 255**0.5, 730**0.5])


def test_blocks_are_copies_and_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(unit, "ELEMENTS", 30)
    for layout in ("llama", "gpt2"):
        reader = make_case(layout, "ffn").group.reader
        before = reader.value.clone()
        blocks = []
        for _, block in reader.blocks():
            blocks.append(block.clone())
            block.zero_()
        assert len(blocks) > 1
        assert torch.equal(torch.cat(blocks), reader.oriented)
        assert torch.equal(reader.value, before)
        torch.testing.assert_close(reader.power_sums(4), reader.oriented.pow(4).sum(0))


def test_scores_that_differ_still_do_when_they_are_standardised():
    scores = torch.tensor([5.0, 0.1, math.nextafter(0.1, 1.0), 0.1, 1.0, 7.0], dtype=torch.float64)
    assert len(set(z_scores(scores).tolist())) < 5, "rounding takes the differences"
    found = ranked_as(scores, z_scores(scores))
    assert torch.equal(found.unique(return_inverse=True)[1], scores.unique(return_inverse=True)[1])
    torch.testing.assert_close(found, z_scores(scores), rtol=1e-12, atol=1e-12)
    level = torch.full((4,), 0.1, dtype=torch.float64)
    assert ranked_as(level, z_scores(level)).tolist() == [0.0] * 4


def test_z_scores_of_equal_values_are_zero():
    assert z_scores(torch.full((7,), 0.1)).tolist() == [0.0] * 7
    assert z_scores(torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)).tolist() == [0.0] * 2
    assert z_scores(torch.tensor([4.0])).tolist() == [0.0]
    assert z_scores(torch.tensor([1.0, 2.0, 3.0])).tolist() == [-1.0, 0.0, 1.0]
