"""What a probed model promises, over all families: it is the dense one without what was dropped, and it generates like it."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import secateur
from secateur import Probe, ProbePruning, State, UserError
from secateur.runtime.cost import Cost
from secateur.runtime.model import Probed
from tests.contract.masking import layers_of, sizes_of
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_model, tiny_tokens

EXACT = {"rtol": 1e-9, "atol": 1e-9}
LENGTH = 9
ALWAYS = Cost(share=math.inf)
PROBE = Probe(tokens=0.5, samples=0.34, least=4, most=1.0)
GROUPED = [v for v in VARIANTS if sizes_of(tiny_model(VARIANTS[v][0], **VARIANTS[v][1])).get("group", 1) > 1]
CASES = [(v, a) for v in VARIANTS for a in ("kv", "group", "heads", "none") if a != "group" or v in GROUPED]
PADDING = {"none": [[], [], []], "left": [[], [0, 1, 2], [0]], "right": [[], [6, 7, 8], [8]]}


def dense(variant: str, **more) -> torch.nn.Module:
    model_type, overrides = VARIANTS[variant]
    return tiny_model(model_type, **overrides, **more)


def probed(
    variant: str, ratio: float = 0.5, how: ProbePruning | None = None, dtype: torch.dtype = torch.float64, **more
) -> Probed:
    how = replace(how or ProbePruning(probe=PROBE), cost=ALWAYS)
    result = secateur.probe(dense(variant, dtype=dtype), ratio, how=how, **more)
    if how.history != "none":
        result.calibrate(tiny_tokens(8, LENGTH, seed=1))
    return result


def padding(kind: str) -> torch.Tensor:
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    for row, places in enumerate(PADDING[kind]):
        mask[row, places] = 0
    return mask


def without_dropped(model: Probed, variant: str, seen: list, *, means: bool) -> torch.nn.Module:
    """The dense model, whose output matrices read the mean (or zero) in place of what was dropped: an oracle without slices."""
    oracle = dense(variant)
    for chosen in seen:
        half = model._halves[chosen.layer, chosen.half]
        dropped = torch.ones(len(half.source), dtype=torch.bool)
        dropped[half.channels(chosen.kept)] = False
        mean = model.state.histories[chosen.layer, chosen.half].average() if means else torch.zeros(len(dropped))

        def replace(_, args, dropped=dropped, mean=mean):
            return (torch.where(dropped, mean.to(args[0].dtype), args[0]), *args[1:])

        layers_of(oracle)[chosen.layer].get_submodule(half.shape.reader).register_forward_pre_hook(replace)
    return oracle


@pytest.mark.parametrize("compensate", ["none", "mean"])
@pytest.mark.parametrize(("variant", "attention"), CASES)
def test_is_the_dense_model_without_what_was_dropped(variant, attention, compensate):
    model = probed(variant, how=ProbePruning(probe=PROBE, attention=attention, compensate=compensate))
    for seed in (0, 1):
        ids = tiny_tokens(3, LENGTH, seed=seed)
        with torch.no_grad(), model.recorded() as seen:
            found = model(ids).logits
        assert len(seen) == len(model._halves) >= 2
        oracle = without_dropped(model, variant, seen, means=compensate == "mean")
        # The mean's shift is a product in float32; so is the attention of gpt_neo, even in float64.
        exact = compensate == "none" and VARIANTS[variant][0] != "gpt_neo"
        torch.testing.assert_close(found, oracle(ids).logits, **(EXACT if exact else {"rtol": 1e-5, "atol": 1e-5}))


@pytest.mark.parametrize("kind", PADDING)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_and_uncached_greedy_decoding_agree(variant, kind):
    # float32, as eager attention gives NaN for rows of padding alone in float64 (its softmax is float32, where that mask is -inf).
    model, ids, mask = probed(variant, dtype=torch.float32), tiny_tokens(3, LENGTH), padding(kind)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **options)
    uncached = model.generate(ids, use_cache=False, **options)
    assert cached.shape == (3, LENGTH + 6)
    assert cached.tolist() == uncached.tolist()
    assert torch.isfinite(model(ids, attention_mask=mask).logits).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_ratio_zero_generates_what_the_dense_model_does(variant):
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids, mask = tiny_tokens(3, LENGTH), padding("left")
    expected = dense(variant, dtype=torch.float32).generate(ids, attention_mask=mask, **options)
    found = secateur.probe(dense(variant, dtype=torch.float32), 0.0).generate(ids, attention_mask=mask, **options)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_cache_holds_the_kept_heads_alone(model_type):
    model, cache = probed(model_type), DynamicCache()
    model(tiny_tokens(2, LENGTH), past_key_values=cache, use_cache=True)
    assert {layer.keys.shape[1] for layer in cache.layers} == {model.widths.heads} != {sizes_of(model.model)["kv"]}


@pytest.mark.parametrize("attention", ["kv", "group", "heads"])
@pytest.mark.parametrize("history", ["channel", "position"])
def test_low_memory_gives_the_same_tokens(attention, history):
    how = ProbePruning(probe=PROBE, attention=attention, history=history)
    ids = tiny_tokens(3, LENGTH)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    kept = probed("llama", how=how).generate(ids, **options)
    low = probed("llama", how=how, memory="low").generate(ids, **options)
    assert kept.tolist() == low.tolist()


def test_padding_changes_neither_choice_nor_logits():
    """Whole batch probed: with padding in front, behind or none, the same scores and the same logits of the real tokens."""
    how = ProbePruning(probe=Probe(tokens=1.0, samples=1.0, most=1.0))
    ids, blank = tiny_tokens(2, LENGTH), torch.zeros(2, 3, dtype=torch.long)
    real = torch.ones_like(ids)
    runs = {
        "none": (ids, real, slice(0, LENGTH)),
        "left": (torch.cat([blank, ids], 1), torch.cat([blank, real], 1), slice(3, None)),
        "right": (torch.cat([ids, blank], 1), torch.cat([real, blank], 1), slice(0, LENGTH)),
    }
    found = {}
    for name, (tokens, mask, part) in runs.items():
        model = probed("llama", how=how, dtype=torch.float32)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad(), model.recorded() as seen:
            logits = model(tokens, attention_mask=mask, position_ids=positions).logits[:, part]
        found[name] = (logits, [c.scores for c in seen], [c.kept.tolist() for c in seen])
    for name in ("left", "right"):
        torch.testing.assert_close(found[name][0], found["none"][0], rtol=1e-4, atol=1e-4)
        for one, other in zip(found[name][1], found["none"][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert found[name][2] == found["none"][2]


def test_a_frozen_state_makes_the_order_of_batches_irrelevant_and_an_online_one_does_not():
    batches = [tiny_tokens(3, LENGTH, seed=s) for s in range(3)]

    def last(order: list[int], **changes) -> torch.Tensor:
        model = probed("llama", how=ProbePruning(probe=PROBE, **changes))
        return {i: model(batches[i]).logits for i in order}[2]

    assert torch.equal(last([0, 1, 2]), last([2, 1, 0]))
    moving = {"ema": 0.2, "history": "position"}
    assert not torch.equal(last([0, 1, 2], **moving), last([2, 1, 0], **moving))


@pytest.mark.parametrize("history", ["channel", "position"])
def test_a_saved_state_is_the_state(tmp_path, history):
    how = ProbePruning(probe=PROBE, history=history, cost=ALWAYS)
    model, ids = probed("qwen3", how=how), tiny_tokens(3, LENGTH)
    model.state.save(tmp_path / "state.safetensors")
    other = secateur.probe(dense("qwen3"), 0.5, how=how)
    other.state = State.load(tmp_path / "state.safetensors")
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_two_streams_with_a_state_each_do_not_mix():
    model = probed("llama", how=ProbePruning(probe=PROBE, ema=0.5))
    first, second = model.state, model.state.copy()
    model(tiny_tokens(3, LENGTH, seed=5))
    before = {key: h.square.clone() for key, h in second.histories.items()}
    assert any(not torch.equal(before[key], h.square) for key, h in first.histories.items())
    model.state = second
    assert all(torch.equal(before[key], h.square) for key, h in model.state.histories.items())


def test_another_state_that_keeps_the_same_units_brings_its_own_means():
    model, ids = probed("llama", how=ProbePruning(probe=None)), tiny_tokens(3, LENGTH)
    before, other = model(ids).logits, model.state.copy()
    for history in other.histories.values():
        history.mean += 1.0
    model.state = other
    fresh = secateur.probe(dense("llama"), 0.5, how=model.how)
    fresh.state = other
    assert torch.equal(model(ids).logits, fresh(ids).logits)
    assert not torch.equal(model(ids).logits, before)


def test_two_caches_in_turn_keep_their_own_choices():
    model = probed("llama")
    prompts = [tiny_tokens(2, LENGTH, seed=s) for s in (0, 1)]
    alone = []
    for ids in prompts:
        cache = DynamicCache()
        model(ids, past_key_values=cache)
        alone.append(model(ids[:, :1], past_key_values=cache).logits)
    caches = [DynamicCache(), DynamicCache()]
    for ids, cache in zip(prompts, caches, strict=True):
        model(ids, past_key_values=cache)
    mixed = [model(ids[:, :1], past_key_values=cache).logits for ids, cache in zip(prompts, caches, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, mixed, strict=True))


@pytest.mark.parametrize("memory", ["kept", "low"])
def test_channels_can_be_chosen_again_while_generating(memory):
    model = probed("llama", memory=memory, rechoose=2)
    with model.recorded() as seen:
        model.generate(tiny_tokens(3, LENGTH), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert [c.half for c in seen].count("attention") == 2  # two layers, the prompt alone
    assert [c.half for c in seen].count("mlp") == 2 * 3  # and after 2 and 4 of the five tokens that are fed again


@pytest.mark.parametrize("history", ["channel", "position"])
@pytest.mark.parametrize("shape", [(1, 1), (1, LENGTH), (17, LENGTH), (2, 2 * LENGTH)])
def test_any_shape_of_batch(shape, history):
    """One token, one sample, a larger batch than any before, longer than the calibration."""
    model = probed("llama", how=ProbePruning(probe=PROBE, history=history, ema=0.9))
    assert torch.isfinite(model(tiny_tokens(*shape)).logits).all()


def test_with_gradients_without_and_in_inference_mode_it_is_the_same():
    model, ids = probed("llama"), tiny_tokens(3, LENGTH)
    expected = model(ids).logits.detach()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            assert torch.equal(model(ids, use_cache=mode is not torch.no_grad).logits, expected)
            model(tiny_tokens(3, LENGTH, seed=4))


def test_a_row_of_padding_alone_changes_nothing_for_the_others():
    ids, mask = tiny_tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    how = ProbePruning(probe=Probe(tokens=1.0, samples=1.0, most=1.0))
    expected = probed("llama", how=how)(ids, attention_mask=mask).logits
    more, masks = torch.cat([ids, torch.zeros_like(ids[:1])]), torch.cat([mask, torch.zeros_like(mask[:1])])
    found = probed("llama", how=how)(more, attention_mask=masks).logits
    torch.testing.assert_close(found[:2], expected, **EXACT)


def test_compiled_halves_do_not_compile_anew_for_what_a_batch_keeps():
    model = probed("llama", dtype=torch.float32).compile(backend="eager", dynamic=False)
    plain = probed("llama", dtype=torch.float32)
    torch._dynamo.reset()
    kept = set()
    for seed in range(6):
        ids = tiny_tokens(3, LENGTH, seed=seed)
        with torch.no_grad(), model.recorded() as seen, torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)
        kept.add(str([c.kept.tolist() for c in seen]))
    assert len(kept) > 1


def test_a_probe_that_does_not_pay_leaves_the_choice_to_the_history():
    model = secateur.probe(dense("llama"), 0.5, how=ProbePruning(probe=PROBE, cost=Cost(share=0.0)))
    model.calibrate(tiny_tokens(8, LENGTH, seed=1))
    with model.recorded() as seen:
        for seed in (0, 1):
            model(tiny_tokens(3, LENGTH, seed=seed))
    assert all(c.part is None for c in seen)
    assert [c.kept.tolist() for c in seen[:4]] == [c.kept.tolist() for c in seen[4:]]


class TestRefusals:
    def test_nan_in_a_batch(self):
        model = probed("llama")
        states = model.get_input_embeddings()(tiny_tokens(2, LENGTH)).detach()
        states[1, 3] = float("nan")
        with pytest.raises(UserError, match="in front of layer 0 hold NaN"):
            model(inputs_embeds=states)
        assert torch.isfinite(model(tiny_tokens(2, LENGTH)).logits).all()

    @pytest.mark.parametrize(
        ("ratio", "how"), [(1.0, ProbePruning()), (-0.1, ProbePruning()), (0.6, ProbePruning(keep_first=1))]
    )
    def test_a_ratio_that_would_empty_a_layer(self, ratio, how):
        with pytest.raises(UserError, match="Allowed"):
            secateur.probe(dense("llama"), ratio, how=how)

    def test_no_history_yet(self):
        with pytest.raises(UserError, match="calibrate"):
            secateur.probe(dense("llama"), 0.5)(tiny_tokens())

    def test_a_cache_of_the_dense_model(self):
        model, cache = dense("llama"), DynamicCache()
        model(tiny_tokens(2, LENGTH), past_key_values=cache)
        with pytest.raises(UserError, match="not made by this probed model"):
            probed("llama")(tiny_tokens(2, 1), past_key_values=cache)

    def test_a_model_in_training(self):
        with pytest.raises(UserError, match="eval"):
            secateur.probe(dense("llama").train(), 0.5)

    def test_a_model_that_is_probed_already(self):
        model = dense("llama")
        first = secateur.probe(model, 0.5)
        with pytest.raises(UserError, match="dense"):
            secateur.probe(model, 0.3)
        secateur.probe(first.dense(), 0.3)

    def test_blocks_that_are_none(self):
        with pytest.raises(UserError, match="block, token"):
            secateur.probe(dense("llama"), 0.5).calibrate(torch.zeros(3, 0, dtype=torch.long))

    def test_a_file_that_is_no_state(self, tmp_path):
        (tmp_path / "x").write_bytes(b"garbage")
        with pytest.raises(UserError, match="not a safetensors file"):
            State.load(tmp_path / "x")
        with pytest.raises(UserError, match="no file"):
            State.load(tmp_path / "y")

    def test_query_heads_in_groups_of_one(self):
        with pytest.raises(UserError, match="Use 'kv'"):
            secateur.probe(dense("gpt2"), 0.5, how=ProbePruning(attention="group"))


def test_a_damaged_batch_teaches_an_online_history_nothing():
    how = replace(ProbePruning.paper(keep_first=0, round_to=1), cost=ALWAYS)
    model, ids = probed("llama", how=how, dtype=torch.float32), tiny_tokens(3, LENGTH)
    wrong = model.get_input_embeddings()(ids).detach()
    wrong[0, 5, 3] = math.nan
    with pytest.raises(UserError, match="NaN"):
        model(inputs_embeds=wrong)
    assert all(torch.isfinite(t).all() for h in model.state.histories.values() for t in h.tensors().values())
    assert torch.isfinite(model(ids).logits).all()


def test_a_static_cache_gives_the_same_tokens_padded_or_not():
    ids, options = tiny_tokens(3, LENGTH), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for kind in PADDING:
        model = probed("llama", dtype=torch.float32)
        static = model.generate(
            ids, attention_mask=padding(kind), cache_implementation="static", disable_compile=True, **options
        )
        assert static.tolist() == model.generate(ids, attention_mask=padding(kind), **options).tolist()
