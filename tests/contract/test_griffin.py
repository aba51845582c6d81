"""A prompt that runs dense and chooses the MLP channels of what follows it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import secateur
from secateur import Probe, ProbePruning
from secateur.runtime.model import Probed
from tests.contract.masking import layers_of
from tests.contract.tiny import VARIANTS, tiny_model, tiny_tokens
from tests.reference.griffin import statistic

LENGTH, NEW = 9, 6
GENERATE: dict[str, Any] = {
    "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "output_logits": True,
    "return_dict_in_generate": True,
}  # fmt: skip
LEFT = torch.tensor([[1] * LENGTH, [0] * 3 + [1] * (LENGTH - 3), [0] + [1] * (LENGTH - 1)])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WITH_HISTORY = ProbePruning(attention="none", prompt="dense", probe=Probe(least=4))


def dense(variant: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model_type, overrides = VARIANTS[variant]
    return tiny_model(model_type, dtype=dtype, **overrides)


def probed(variant: str, ratio: float = 0.5, how: ProbePruning | None = None, **more: Any) -> Probed:
    model = secateur.probe(dense(variant), ratio, how=how or ProbePruning.griffin(), **more)
    return model if model.how.history == "none" else model.calibrate(tiny_tokens(8, LENGTH, seed=1))


def naive(
    variant: str, reader: str, count: int, ids: torch.Tensor, mask: torch.Tensor, prompt: int = LENGTH
) -> torch.nn.Module:
    """The dense model, which from the prompt's end on reads zero in place of what a float64 loop over its first pass leaves out."""
    model, seen = dense(variant), {}
    for number, layer in enumerate(layers_of(model)):

        def see(_: Any, args: Any, number: int = number) -> Any:
            x = args[0].reshape(len(ids), -1, args[0].shape[-1])
            if number not in seen:
                order = sorted(enumerate(statistic(x, mask.bool())), key=lambda pair: -pair[1])
                seen[number] = torch.tensor([k for k, _ in order[count:]])
                return None
            x = x.clone()
            x[:, prompt:, seen[number]] = 0.0
            return (x.reshape(args[0].shape), *args[1:])

        layer.get_submodule(reader).register_forward_pre_hook(see)
    return model


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_generates_as_the_dense_model_masked_after_the_prompt(variant, padded):
    ids, mask = tiny_tokens(3, LENGTH), LEFT if padded else torch.ones_like(LEFT)
    model = probed(variant)
    reader = model._halves[0, "mlp"].shape.reader
    whole = dense(variant).generate(ids, attention_mask=mask, **GENERATE)
    with model.recorded() as seen:
        found = model.generate(ids, attention_mask=mask, **GENERATE)
    assert [(c.layer, c.half, len(c.kept)) for c in seen] == [
        (n, "mlp", model.widths.ffn) for n in (0, 1)
    ]  # by the prompt alone
    assert torch.equal(found.logits[0], whole.logits[0])
    assert torch.equal(found.sequences[:, LENGTH], whole.sequences[:, LENGTH])
    expected = naive(variant, reader, model.widths.ffn, ids, mask).generate(
        ids, attention_mask=mask, use_cache=False, **GENERATE
    )  # fmt: skip
    assert not torch.allclose(expected.logits[1], whole.logits[1], **CLOSE)
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), **CLOSE)
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **GENERATE)
    torch.testing.assert_close(torch.stack(uncached.logits), torch.stack(expected.logits), **CLOSE)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt", "gemma2"])
def test_ratio_zero_is_token_identical_to_dense(variant, use_cache):
    options = {"attention_mask": LEFT, "use_cache": use_cache, **GENERATE}
    expected = dense(variant).generate(tiny_tokens(3, LENGTH), **options).sequences
    assert probed(variant, 0.0).generate(tiny_tokens(3, LENGTH), **options).sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt", "gemma2"])
def test_a_pass_that_nothing_follows_runs_on_its_own_choice(variant):
    model, ids, mask = probed(variant), tiny_tokens(3, LENGTH), LEFT
    with torch.no_grad(), model.recorded() as seen:
        found = model(ids, attention_mask=mask, use_cache=False).logits
    assert [len(c.kept) for c in seen] == [model.widths.ffn] * 2
    oracle = naive(variant, model._halves[0, "mlp"].shape.reader, model.widths.ffn, ids, mask, prompt=0)
    for _ in range(2):  # the first pass chooses, the second is masked
        expected = oracle(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, dense(variant)(ids, attention_mask=mask, use_cache=False).logits, **CLOSE)
    with torch.no_grad():  # and one that leaves a cache does not
        assert torch.equal(model(ids, past_key_values=DynamicCache()).logits, dense(variant)(ids).logits)


@pytest.mark.parametrize("how", [WITH_HISTORY, replace(WITH_HISTORY, probe=None)], ids=["fused", "history alone"])
def test_other_metrics_may_let_the_prompt_run_dense(how):
    model, ids = probed("llama", how=how), tiny_tokens(3, LENGTH)
    with model.recorded() as seen:
        found = model.generate(ids, **GENERATE)
    assert [c.part is None or len(c.part.tokens) == LENGTH for c in seen] == [True, True]
    assert all((c.part is None) == (how.probe is None) for c in seen)
    assert torch.equal(found.logits[0], dense("llama").generate(ids, **GENERATE).logits[0])
    uncached = model.generate(ids, use_cache=False, **GENERATE)
    assert found.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(uncached.logits), **CLOSE)


def test_low_memory_and_choosing_again_and_giving_the_model_back():
    ids = tiny_tokens(3, LENGTH)
    expected = probed("llama").generate(ids, **GENERATE).sequences.tolist()
    assert probed("llama", memory="low").generate(ids, **GENERATE).sequences.tolist() == expected
    model = probed("llama", rechoose=2)
    with model.recorded() as seen:
        model.generate(ids, **GENERATE)
    assert [len(c.part.tokens) for c in seen] == [LENGTH, LENGTH, 1, 1, 1, 1]  # the prompt, and after 2 and 4 of the tokens
    back = model.dense()
    assert torch.equal(back(ids).logits, dense("llama")(ids).logits)
    assert not any(module._forward_pre_hooks for module in back.modules())


def test_nan_in_a_prompt_is_refused():
    model = probed("llama")
    states = model.get_input_embeddings()(tiny_tokens(2, LENGTH)).detach()
    states[1, 3] = float("nan")
    with pytest.raises(secateur.UserError, match="in front of layer 0 hold NaN"):
        model(inputs_embeds=states, past_key_values=DynamicCache())
