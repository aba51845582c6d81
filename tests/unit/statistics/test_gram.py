import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UserError
from secateur.statistics import ACCUMULATORS, STATISTICS
from secateur.statistics.gram import ROWS, Gram, GramAccumulator, typical
from secateur.statistics.statistic import Accumulator, Statistic


def noise(tokens: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.integers(1, 5), st.integers(0, 10**6))
def test_monoid_laws(lengths, channels, seed):
    parts = [noise(n, channels, seed + i) for i, n in enumerate(lengths)]
    a, b, c = (Gram.of(x) for x in parts)
    nothing = Gram.of(noise(0, channels))
    whole = torch.cat(parts)
    for left, right in ((a + b) + c, a + (b + c)), (a + b, b + a), (a + nothing, a), (a + b + c, Gram.of(whole)):
        assert left.count == right.count
        torch.testing.assert_close(left.matrix, right.matrix.to(left.matrix.dtype), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Gram.of(whole).matrix.double(), whole.T @ whole, rtol=1e-12, atol=1e-12)


# More channels than one panel, and more tokens than one float32 sum.
CHANNELS, TOKENS = ROWS + 90, 2 * ROWS + 17


def test_float64_inputs_are_multiplied_in_float64():
    x = noise(TOKENS, CHANNELS)
    gram = Gram.of(x)
    assert gram.matrix.dtype == torch.float64
    torch.testing.assert_close(gram.matrix, x.T @ x, rtol=1e-11, atol=1e-10)
    assert torch.equal(gram.matrix, gram.matrix.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_inputs_are_as_good_as_float32_sums_of_512_terms(dtype):
    x = noise(TOKENS, CHANNELS).to(dtype)
    gram = Gram.of(x)
    assert gram.count == TOKENS
    assert gram.matrix.dtype == torch.float32
    assert torch.equal(gram.matrix, gram.matrix.T)
    exact = x.double().T @ x.double()
    assert (gram.matrix - exact).abs().max() < 1e-6 * exact.diagonal().max()


def test_a_long_stream_does_not_lose_small_terms():
    """A float32 running sum would stop growing at 2^24; here each part is exact and the total is float64."""
    accumulator = GramAccumulator(1)
    for _ in range(80):
        accumulator.update(torch.full((ROWS, 1), 4096.0))
    assert float(accumulator.result().matrix) == 80 * ROWS * 4096.0**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_depends_on_the_tokens_and_not_on_their_blocks(dtype):
    x = noise(TOKENS, 40).to(dtype)
    whole = Gram.of(x)
    for size in (1, 100, ROWS, 700):
        accumulator = GramAccumulator(40)
        for part in x.split(size):
            block = part.clone()
            accumulator.update(block)
            block.fill_(float("nan"))  # what the caller does with it afterwards is the caller's affair
        assert torch.equal(accumulator.result().matrix, whole.matrix)


def test_reduced_precision_that_the_process_chose_is_not_used_and_stays_chosen():
    x = noise(ROWS, ROWS).float()
    full = Gram.of(x).matrix
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(Gram.of(x).matrix, full)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_survives_saving_exactly_when_it_was_gathered_in_float32():
    gram = Gram.of(noise(20, 5).float())
    saved = gram.to_tensors()
    assert saved["count"].dtype == torch.int64
    assert saved["matrix"].dtype == torch.float32
    loaded = Gram.from_tensors(saved)
    assert loaded.count == 20
    assert torch.equal(loaded.matrix, gram.matrix)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_and_named(bad):
    x = noise(9, 7).float()
    assert Gram.of(x).require_finite("layer 3").count == 9
    x[4, 6] = bad
    assert not Gram.of(x).finite()
    with pytest.raises(UserError, match=r"^layer 3, self_attn.o_proj: .*gram.*NaN or infinity"):
        Gram.of(x).require_finite("layer 3, self_attn.o_proj")


def test_is_finished_when_the_result_is_taken():
    accumulator = GramAccumulator(2)
    accumulator.result()
    with pytest.raises(AssertionError):
        accumulator.update(torch.ones(1, 2))
    with pytest.raises(AssertionError):
        accumulator.result()


def test_is_a_statistic_and_the_tables_know_what_is_gathered_forward():
    assert isinstance(Gram.of(torch.ones(1, 1)), Statistic)
    assert isinstance(GramAccumulator(1), Accumulator)
    assert STATISTICS.names().keys() > ACCUMULATORS.names().keys()
    for name in ACCUMULATORS.names():
        accumulator = ACCUMULATORS[name](3, torch.device("cpu"))
        accumulator.update(*[torch.ones(4, 3)] * (2 if name == "layer-cosine" else 1))
        result = accumulator.result()
        assert isinstance(result, STATISTICS[name])
        assert result.kind == name
        assert STATISTICS[name].from_tensors(result.to_tensors()).count == 4


def test_a_few_massive_channels_do_not_change_what_is_typical():
    """The mean, unless a few channels are most of it; channels that are always zero count in the mean alone."""
    diagonal = torch.tensor([1.0, 2, 3, 4, 5])
    assert float(typical(diagonal)) == 3.0
    assert float(typical(torch.cat([diagonal, torch.zeros(5)]))) == 1.5
    assert float(typical(torch.cat([diagonal, torch.tensor([1e6, 1e8])]))) == 4 * 4.0
    assert float(typical(torch.zeros(3))) == 0.0
