"""What a model that each batch corrects promises, over all families: the formulas of its paper-less method, and generation."""

import copy
import gc
import math
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

import secateur
from secateur import ProbeRefit, RefitState, UserError, axes
from secateur.families.binding import bind
from secateur.families.resize import resize_layer
from secateur.plan import Plan
from secateur.runtime.refitted import TAG, Refitted
from tests.contract.masking import layers_of
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_model, tiny_tokens

LENGTH = 9
HOW = ProbeRefit(tokens=0.3, least=6, fewest=1, share=10.0, strength=0.5)
PADDING = {"none": [[], [], []], "left": [[], [0, 1, 2], [0]], "right": [[], [6, 7, 8], [8]]}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def dense(variant: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    model_type, overrides = VARIANTS[variant]
    return tiny_model(model_type, **overrides, dtype=dtype)


def pruned(variant: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Plan]:
    """Of the first layer every second channel, of the others two in three; some rows of what stays changed, as a refit would."""
    model = dense(variant, dtype)
    binding = bind(model.config)
    stay = [tuple(range(0, binding.sizes["ffn"], 2))] + [tuple(i for i in range(binding.sizes["ffn"]) if i % 3)] * 9
    plan = Plan(
        model_type=binding.model_type, fingerprint="", sizes=binding.sizes,
        layers=tuple({"ffn": stay[i]} for i in range(binding.num_layers)),
    )  # fmt: skip
    for number, layer in enumerate(layers_of(model)):
        resize_layer(layer, binding.family, axes.kept_sizes(binding.sizes, plan.layers[number]))
        for name, spec in binding.layer.items():
            if spec.mentions("ffn"):
                weight = axes.select(layer.get_parameter(name).detach(), spec, binding.sizes, plan.layers[number])
                owner, _, last = name.rpartition(".")
                setattr(layer.get_submodule(owner), last, nn.Parameter(weight * 1.1))
    return model, plan


def refitted(variant: str, dtype: torch.dtype = torch.float64, how: ProbeRefit = HOW, **more) -> Refitted:
    small, plan = pruned(variant, dtype)
    return Refitted(small, dense(variant, dtype), plan, how=how, **more).calibrate(tiny_tokens(8, LENGTH, seed=1))


def padding(kind: str) -> torch.Tensor:
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    for row, places in enumerate(PADDING[kind]):
        mask[row, places] = 0
    return mask


class Oracle:
    """The smaller model, corrected by hooks that know the formulas alone: primal ridge regression in float64."""

    def __init__(self, variant: str, model: Refitted, mask: torch.Tensor, dtype: torch.dtype) -> None:
        self.small, self.plan = pruned(variant, dtype)
        self.state, self.mask = model.state, mask.flatten().bool()
        whole, binding = dense(variant, dtype), bind(self.small.config)
        block, ((name, spec),) = binding.family.mlp, binding.readers("ffn").items()
        path = name.rpartition(".")[0]
        for number, (small, full) in enumerate(zip(layers_of(self.small), layers_of(whole), strict=True)):
            keep = torch.zeros(binding.sizes["ffn"], dtype=torch.bool)
            keep[list(self.plan.layers[number]["ffn"])] = True
            matrix = full.get_submodule(path).weight.detach()
            matrix = matrix if 0 in spec.inputs else matrix.mT
            seen: dict[str, torch.Tensor] = {}

            def entering(_, args, kwargs, full=full, seen=seen, keep=keep, matrix=matrix):
                hook = full.get_submodule(path).register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
                if block.through:
                    x = args[0]
                    for step in block.through:
                        x = full.get_submodule(step)(x)
                    seen["x"] = x
                else:
                    full.get_submodule(block.entry)(*args, **kwargs)
                hook.remove()
                x = seen["x"].reshape(-1, len(keep))
                seen["y"] = x[:, ~keep] @ matrix[~keep]

            def reading(_, args, out, number=number, seen=seen):
                change = self.change(number, args[0].reshape(-1, args[0].shape[-1]), seen["y"])
                return out + change.view(out.shape).to(out.dtype)

            small.get_submodule(block.entry).register_forward_pre_hook(entering, with_kwargs=True)
            small.get_submodule(path).register_forward_hook(reading)

    def change(self, number: int, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z, y = z.double(), y.double()
        known = self.state.known[number]
        kept = z.shape[1]
        gone = y.shape[1] and 1 - kept / self.plan.sizes["ffn"]
        real = self.mask.nonzero().flatten()
        n = min(max(6, round(0.3 * len(real))), int(10 * gone * len(real) / (gone + (1 - gone) * 2 / 3)))
        at = real[((torch.arange(n) + 0.5) / n * len(real)).long()]
        r = (y - (z @ known.weight.double() + known.bias.double()))[at]
        x = torch.cat([z - known.mean.double(), torch.ones(len(z), 1)], 1)
        lam = 0.5 * n
        penalty = torch.cat([1 / known.scale.double(), torch.ones(1)]) * lam
        weights = torch.linalg.solve(x[at].mT @ x[at] + penalty.diag(), x[at].mT @ r)
        change = x @ weights
        change[at] += r - x[at] @ weights
        return change


@pytest.mark.parametrize("kind", ["none", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_is_the_formulas(variant, kind):
    # float32 with padding: eager attention gives NaN for rows of padding alone in float64.
    dtype, mask, ids = torch.float64 if kind == "none" else torch.float32, padding(kind), tiny_tokens(3, LENGTH)
    model = refitted(variant, dtype)
    with torch.no_grad():
        found = model(ids, attention_mask=mask).logits[mask.bool()]
        given = pruned(variant, dtype)[0](ids, attention_mask=mask).logits[mask.bool()]
        expected = Oracle(variant, model, mask, dtype).small(ids, attention_mask=mask).logits[mask.bool()]
    assert (found - given).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("variant", MODEL_TYPES)
def test_what_is_known_is_the_best_map_of_calibration_text(variant):
    model = refitted(variant)
    half = model.halves[1]
    seen: list[torch.Tensor] = []
    layer = layers_of(model.model)[1]
    assert half.reader in list(layer.modules())
    hook = half.reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].reshape(-1, half.width)))
    entered: list[torch.Tensor] = []
    other = half.entry.register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(half.missed(args, kwargs, slice(None))), with_kwargs=True
    )
    model.how = replace(HOW, fewest=10**6)  # nothing is corrected
    with torch.no_grad():
        model(tiny_tokens(8, LENGTH, seed=1))
    hook.remove(), other.remove()
    z, y = seen[0].double(), entered[0].double()
    centred = z - z.mean(0)
    gram = centred.mT @ centred
    diagonal = gram.diagonal()
    ridge = 0.01 * min(diagonal.mean(), 4 * diagonal[diagonal > 1e-10 * diagonal.mean()].median())
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), centred.mT @ (y - y.mean(0)))
    known = model.state.known[1]
    torch.testing.assert_close(known.mean.double(), z.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(known.weight.double(), weight, rtol=1e-4, atol=1e-5 * float(weight.abs().max()))
    torch.testing.assert_close(known.bias.double(), y.mean(0) - z.mean(0) @ weight, rtol=1e-4, atol=1e-5 * float(y.abs().max()))
    variance = centred.square().sum(0) / (len(z) - 1)
    expected = 1 / (variance + 0.1 * min(variance.mean(), 4 * variance.median()))
    torch.testing.assert_close(known.scale.double(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", PADDING)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_and_uncached_greedy_decoding_agree(variant, kind):
    model, ids, mask = refitted(variant, torch.float32), tiny_tokens(3, LENGTH), padding(kind)
    cached = model.generate(ids, attention_mask=mask, use_cache=True, **GREEDY)
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY)
    assert cached.shape == (3, LENGTH + 6)
    assert cached.tolist() == uncached.tolist()
    assert torch.isfinite(model(ids, attention_mask=mask).logits).all()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_low_memory_decodes_the_same(model_type):
    ids = tiny_tokens(3, LENGTH)
    kept, low = (refitted(model_type, torch.float32, memory=m) for m in ("kept", "low"))
    assert kept.generate(ids, **GREEDY).tolist() == low.generate(ids, **GREEDY).tolist()
    first = low(ids, use_cache=True)
    step = {"past_key_values": first.past_key_values, "use_cache": True}
    found = low(ids[:, :1], **step).logits
    first = kept(ids, use_cache=True)
    torch.testing.assert_close(found, kept(ids[:, :1], past_key_values=first.past_key_values).logits, rtol=1e-4, atol=1e-5)
    plain = pruned(model_type, torch.float32)[0]
    first = plain(ids, use_cache=True)
    assert (found - plain(ids[:, :1], past_key_values=first.past_key_values).logits).abs().max() > 1e-4


def test_a_small_batch_is_the_pruned_model():
    model = refitted("llama", how=replace(HOW, fewest=28))
    small, ids = pruned("llama")[0], tiny_tokens(4, LENGTH)
    assert torch.equal(model(ids[:3]).logits, small(ids[:3]).logits)
    assert not torch.equal(model(ids).logits, small(ids).logits)


def test_batches_leave_nothing_behind():
    model, one, other = refitted("llama", torch.float32), tiny_tokens(3, LENGTH), tiny_tokens(5, LENGTH, seed=7)
    first = model(one).logits
    model(other), model.generate(other, **GREEDY)
    assert torch.equal(model(one).logits, first)


def test_a_saved_state_gives_the_same(tmp_path):
    model, ids = refitted("gpt2", torch.float32), tiny_tokens(3, LENGTH)
    model.state.save(tmp_path / "state")
    small, plan = pruned("gpt2", torch.float32)
    again = Refitted(small, dense("gpt2", torch.float32), plan, how=HOW)
    with pytest.raises(UserError, match="calibrate"):
        again(ids)
    again.state = RefitState.load(tmp_path / "state")
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(UserError, match="no file"):
        RefitState.load(tmp_path / "none")
    secateur.State().save(tmp_path / "other")
    with pytest.raises(UserError, match="holds no state"):
        RefitState.load(tmp_path / "other")


def test_in_few_bytes_layers_learn_one_after_the_other():
    small, plan = pruned("llama")
    one = Refitted(small, dense("llama"), plan, how=HOW).calibrate(tiny_tokens(8, LENGTH, seed=1), most=1)
    both = refitted("llama")
    for layer, known in both.state.known.items():
        for mine, its in zip(known, one.state.known[layer], strict=True):
            assert torch.equal(mine, its)


def test_padding_teaches_nothing():
    mask = torch.ones(8, LENGTH, dtype=torch.long)
    mask[:, 6:] = 0
    ids = tiny_tokens(8, LENGTH, seed=1)
    small, plan = pruned("llama")
    model = Refitted(small, dense("llama"), plan, how=HOW)
    padded = model.calibrate(ids, attention_mask=mask).state.known[0]
    short = model.calibrate(ids[:, :6]).state.known[0]
    torch.testing.assert_close(padded.weight, short.weight, rtol=1e-4, atol=1e-6)


def test_damaged_batches_and_rows_of_padding():
    model, ids = refitted("llama", torch.float32), tiny_tokens(3, LENGTH)
    wrong = model.get_input_embeddings()(ids).detach()
    wrong[1, 2] = math.nan
    with pytest.raises(UserError, match="NaN"):
        model(inputs_embeds=wrong)
    mask = torch.ones_like(ids)
    mask[1] = 0
    found = model(ids, attention_mask=mask).logits
    assert torch.isfinite(found).all()
    other = ids.clone()
    other[1] = 5
    torch.testing.assert_close(model(other, attention_mask=mask).logits[[0, 2]], found[[0, 2]], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(model(ids, attention_mask=torch.zeros_like(ids)).logits).all()


def test_the_dense_model_is_not_kept_and_the_smaller_one_comes_back():
    (small, plan), whole = pruned("llama"), dense("llama")
    ids = tiny_tokens(3, LENGTH)
    before = small(ids).logits
    seen = weakref.ref(layers_of(whole)[0].self_attn.q_proj.weight)
    model = Refitted(small, whole, plan, how=HOW).calibrate(ids)
    del whole
    gc.collect()
    assert seen() is None
    assert not torch.equal(model(ids).logits, before)
    assert model.plain() is small
    assert torch.equal(small(ids).logits, before)


def test_models_that_do_not_belong_together_are_refused():
    small, plan = pruned("llama")
    with pytest.raises(UserError, match="Load both alike"):
        Refitted(small, dense("llama", torch.float32), plan)
    with pytest.raises(UserError, match="pruned from"):
        Refitted(small, dense("gpt2"), plan)
    with pytest.raises(UserError, match="by the plan it lost"):
        Refitted(small, dense("llama"), replace(plan, layers=({"ffn": (0, 1)}, {})))
    with pytest.raises(UserError, match="training mode"):
        Refitted(copy.deepcopy(small).train(), dense("llama"), plan)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0.0}, {"tokens": 2.0}, {"least": 0}, {"fewest": 0}, {"share": -1.0}, {"strength": 0.0}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match="fraction|least|strength"):
        ProbeRefit(**wrong)


def test_a_mask_of_queries_and_keys_says_what_is_padding():
    model, ids, mask = refitted("llama", torch.float32), tiny_tokens(3, LENGTH), padding("left")
    places = (mask.cumsum(1) - 1).clamp_min(0)
    expected = model(ids, attention_mask=mask, position_ids=places).logits
    allowed = (torch.ones(LENGTH, LENGTH).tril() * mask[:, None]).bool()[:, None]
    four = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    found = model(ids, attention_mask=four, position_ids=places).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
    options = {"attention_mask": mask, **GREEDY}
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert static.tolist() == model.generate(ids, **options).tolist()


def test_padding_does_not_count_as_tokens():
    model, ids, mask = refitted("llama", torch.float32, how=replace(HOW, fewest=22)), tiny_tokens(3, LENGTH), padding("left")
    small = pruned("llama", torch.float32)[0]
    real = mask.bool()
    assert int(real.sum()) == 23
    mask[0, 0], mask[1, 3] = 0, 0
    assert torch.equal(model(ids, attention_mask=mask).logits, small(ids, attention_mask=mask).logits)


def test_a_short_first_turn_leaves_the_next_to_be_probed():
    model, ids = refitted("llama", how=replace(HOW, fewest=15)), tiny_tokens(3, LENGTH)
    small = pruned("llama")[0]
    first, its = model(ids[:, :4]), small(ids[:, :4])
    assert torch.equal(first.logits, its.logits)
    second = model(ids[:, 4:], past_key_values=first.past_key_values)
    other = small(ids[:, 4:], past_key_values=its.past_key_values)
    assert (second.logits - other.logits).abs().max() > 1e-3
    assert set(getattr(second.past_key_values, TAG).by_layer) == {0, 1}  # every layer's, not the first one's alone
    last = {"input_ids": ids[:, :1]}
    third = model(**last, past_key_values=second.past_key_values)
    assert (third.logits - small(**last, past_key_values=other.past_key_values).logits).abs().max() > 1e-3
    with pytest.raises(UserError, match="not made by this model"):
        model(**last, past_key_values=small(ids).past_key_values)


def test_what_would_lose_the_corrections_is_refused():
    model, ids = refitted("llama"), tiny_tokens(3, LENGTH)
    assert model.eval() is model and model.to("cpu") is model and model.to(torch.float64) is model
    with pytest.raises(UserError, match="load the model so"):
        model.to(torch.bfloat16)
    for wrong in (lambda: copy.deepcopy(model), lambda: pickle.dumps(model), model.train):
        with pytest.raises(UserError):
            wrong()
    model.state = secateur.State()
    with pytest.raises(UserError, match="is a State"):
        model(ids)
    model.state = refitted("gpt2").state
    model.state.known[0] = model.state.known[0]._replace(weight=torch.zeros(3, 4))
    with pytest.raises(UserError, match=r"map of layer 0 is \[3, 4\]"):
        model(ids)


def test_a_model_that_lost_no_channel_has_an_empty_state(tmp_path):
    small, plan = dense("llama"), replace(pruned("llama")[1], layers=({}, {}))
    model = Refitted(small, dense("llama"), plan).calibrate(tiny_tokens(2, LENGTH))
    model.state.save(tmp_path / "state")
    assert RefitState.load(tmp_path / "state").known == {}
    assert torch.equal(model(tiny_tokens(3, LENGTH)).logits, dense("llama")(tiny_tokens(3, LENGTH)).logits)
