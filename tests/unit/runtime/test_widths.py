"""How much stays, in the paper's counting and in ours."""

import pytest
from transformers import LlamaConfig

from secateur import ProbePruning
from secateur.families.binding import bind
from secateur.plan import parameters
from secateur.runtime.widths import Widths


def llama(layers: int = 32, kv: int = 32) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=kv,
        vocab_size=100,
    )  # fmt: skip


@pytest.mark.parametrize(("ratio", "heads", "ffn"), [(0.4, 14, 4800), (0.2, 7, 2368)])
def test_llama_2_7b_as_published(ratio, heads, ffn):
    found = Widths.of(bind(llama()), ProbePruning.paper(), ratio)
    assert (32 - found.heads, 11008 - found.ffn) == (heads, ffn)


@pytest.mark.parametrize("attention", ["kv", "group", "heads", "none"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 0.4, 0.5])
def test_plain_counts_leave_the_ratio_of_the_parameters_of_what_is_pruned(attention, ratio):
    binding = bind(llama(layers=2, kv=8))
    how = ProbePruning(attention=attention)
    found = Widths.of(binding, how, ratio)
    specs, sizes = list(binding.layer.values()), dict(binding.sizes)
    whole = parameters(specs, sizes)
    mlp = whole - parameters(specs, {**sizes, "ffn": 0})
    both = (
        mlp
        if attention == "none"
        else whole - parameters(specs, {**sizes, "ffn": 0, "kv" if attention == "kv" else "group": 0})
    )
    if attention == "heads":  # keys and values are there in full, though a batch reads those of its heads
        gone = (1 - (found.heads or 32) / 32) * (both - mlp) + (1 - (found.ffn or 11008) / 11008) * mlp
    else:
        gone = whole - parameters(specs, found.sizes(sizes, attention))
    assert abs(gone - ratio * both) <= mlp / 11008


def test_layers_that_stay_whole_are_paid_for_by_the_others():
    binding = bind(llama(layers=4))
    assert Widths.of(binding, ProbePruning(keep_first=2), 0.2) == Widths.of(binding, ProbePruning(), 0.4)


def test_nothing_leaves_at_ratio_zero():
    assert Widths.of(bind(llama(layers=2)), ProbePruning(), 0.0) == Widths(heads=None, ffn=None)


def test_channels_are_rounded_up():
    assert Widths.of(bind(llama(layers=2)), ProbePruning(round_to=256), 0.4).ffn % 256 == 0
