"""Rows that are read in place, and probes that run beside attention: what comes out is what comes out without."""

from contextlib import contextmanager

import jaxtyping
import pytest
import torch
from transformers import DynamicCache

from secateur import Probe, ProbePruning
from secateur.runtime.half import Half
from secateur.runtime.overlap import Overlap
from secateur.runtime.selected import Selected
from tests.contract.masking import layers_of
from tests.contract.test_runtime import CASES, LENGTH, PROBE, dense, padding, probed
from tests.contract.tiny import VARIANTS, tiny_tokens

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EARLIER = Probe(tokens=0.5, samples=0.34, least=4, most=1.0, stream="earlier")
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def selected(model) -> list[Selected]:
    return [m for half in model._halves.values() for m in half.small.modules() if isinstance(m, Selected)]


@pytest.mark.parametrize("compensate", ["none", "mean"])
@pytest.mark.parametrize(("variant", "attention"), CASES)
def test_in_place_gives_what_copies_give(variant, attention, compensate):
    how = ProbePruning(probe=PROBE, attention=attention, compensate=compensate)
    copied, model = probed(variant, how=how, memory="low"), probed(variant, how=how, memory="low", gather="kernel")
    for seed in (0, 1):
        ids = tiny_tokens(3, LENGTH, seed=seed)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, copied(ids).logits, **CLOSE)
    found = selected(model)
    assert len(found) >= 4 and all(
        m.index is not None for m in found
    )  # both halves of two layers, without the wide ones' copies
    names = {name for half in model._halves.values() for name, (s, _, _) in half.weights.sources.items() if s.ndim == 2}
    assert names.isdisjoint(name for scratch in model._scratch.values() for name, _, _ in scratch.buffers)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("memory", ["kept", "low"])
def test_in_place_generates_the_same_tokens(variant, memory):
    ids, mask = tiny_tokens(3, LENGTH), padding("left")
    found = [
        probed(variant, dtype=torch.float32, memory=memory, gather=gather).generate(ids, attention_mask=mask, **GREEDY).tolist()
        for gather in ("copy", "kernel")
    ]
    assert found[0] == found[1]


def test_what_is_used_again_is_copied_and_what_is_not_is_read_in_place():
    """A batch alone, then a prompt with a cache, then a batch alone, then the cache again."""
    how = ProbePruning(probe=PROBE, probed=("attention", "mlp"))
    model, plain = (probed("llama", how=how, gather=gather) for gather in ("kernel", "copy"))
    alone, prompt, caches = tiny_tokens(3, LENGTH), tiny_tokens(2, LENGTH, seed=1), (DynamicCache(), DynamicCache())
    with torch.no_grad():
        for ids, cached in ((alone, False), (prompt, True), (alone, False), (prompt[:, :1], True)):
            logits = [
                m(ids, use_cache=cached, past_key_values=cache if cached else None).logits
                for m, cache in zip((model, plain), caches, strict=True)
            ]
            torch.testing.assert_close(*logits, **CLOSE)
            assert {m.index is None for m in selected(model)} == {cached}


def test_in_place_with_gradients_and_in_inference_mode():
    model, ids = probed("llama", gather="kernel", memory="low"), tiny_tokens(3, LENGTH)
    expected = probed("llama")(ids).logits.detach()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(model(ids).logits, expected, **CLOSE)


def test_in_place_compiles_once(monkeypatch):
    model = probed("llama", dtype=torch.float32, gather="kernel", memory="low").compile(backend="eager", dynamic=False)
    plain = probed("llama", dtype=torch.float32)
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or its checks are compiled too, in one function for all
    kept = set()
    for seed in range(6):
        ids = tiny_tokens(3, LENGTH, seed=seed)
        with torch.no_grad(), model.recorded() as seen, torch._dynamo.config.patch(error_on_recompile=True):
            found = model(ids, use_cache=False).logits
            torch.testing.assert_close(found, plain(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)
        kept.add(str([c.kept.tolist() for c in seen]))
    assert len(kept) > 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt"])
def test_dense_again_after_rows_were_read_in_place(variant):
    model, ids = probed(variant, gather="kernel", memory="low"), tiny_tokens(3, LENGTH)
    model(ids)
    assert torch.equal(model.dense()(ids).logits, dense(variant)(ids).logits)


class Streams:
    """Stands for torch.cuda and logs what is asked of its two streams."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = "first"

    def current_stream(self, _):
        return Stream(self.now, self)

    def Stream(self, _):
        return Stream("second", self)

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before


class Stream:
    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def wait_stream(self, other):
        self.streams.log.append(f"{self.name} waits for all of {other.name}")

    def wait_event(self, event):
        self.streams.log.append(f"{self.name} waits for {event}")

    def record_event(self):
        self.streams.log.append(f"event on {self.name}")
        return f"event of {self.name}"


def watched(monkeypatch, model) -> Streams:
    """The model with logged streams: who runs the probe, the attention and the MLP, and which tensors are recorded where."""
    streams = Streams()
    model._overlap = Overlap(streams, "cpu")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, s: streams.log.append(f"recorded on {s.name}"), raising=False)
    choose = Half.choose

    def chosen(self, *args):
        streams.log.append(f"{self.shape.name} chosen on {streams.now}")
        return choose(self, *args)

    monkeypatch.setattr(Half, "choose", chosen)
    for half in model._halves.values():
        name = half.shape.name
        half.entry.inner.register_forward_pre_hook(lambda *_, n=name: streams.log.append(f"{n} runs on {streams.now}"))
    return streams


def test_the_order_of_two_streams(monkeypatch):
    model = probed("llama", how=ProbePruning(probe=EARLIER))
    streams = watched(monkeypatch, model)
    expected = probed("llama", how=ProbePruning(probe=EARLIER))(tiny_tokens(3, LENGTH)).logits
    streams.log.clear()
    assert torch.equal(model(tiny_tokens(3, LENGTH), attention_mask=torch.ones(3, LENGTH)).logits, expected)
    layer = [
        "second waits for all of first", "mlp chosen on second", "event on second", "recorded on second",
        "attention chosen on first", "attention runs on first",
        "first waits for event of second", *["recorded on first"] * 4, "mlp runs on first",
    ]  # fmt: skip
    assert streams.log == layer * 2


def test_padding_is_recorded_too_and_a_choice_that_holds_begins_nothing(monkeypatch):
    model, mask = probed("llama", how=ProbePruning(probe=EARLIER)), padding("left")
    streams, cache = watched(monkeypatch, model), DynamicCache()
    model(tiny_tokens(3, LENGTH), attention_mask=mask, past_key_values=cache)
    assert streams.log.count("recorded on second") == 2 * 2
    streams.log.clear()
    model(tiny_tokens(3, 1), attention_mask=torch.cat([mask, mask[:, -1:]], 1), past_key_values=cache)
    assert streams.log == ["attention runs on first", "mlp runs on first"] * 2


@pytest.mark.parametrize("probe", [PROBE, Probe(least=4, most=1.0, stream="earlier", rank="normed")])
def test_a_probe_that_needs_the_block_in_front_runs_in_its_place(monkeypatch, probe):
    model = probed("llama", how=ProbePruning(probe=probe))
    streams = watched(monkeypatch, model)
    model(tiny_tokens(3, LENGTH))
    assert streams.log == [f"{half} {does} on first" for half in ("attention", "mlp") for does in ("chosen", "runs")] * 2


@pytest.mark.parametrize("rank", ["residual", "even"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_begun_early_is_chosen_the_same(monkeypatch, variant, rank):
    how = ProbePruning(probe=Probe(**{**vars(EARLIER), "rank": rank}), probed=("attention", "mlp"), ema=0.9)
    # float32: eager attention gives NaN for rows of padding alone in float64.
    model, plain = (probed(variant, how=how, dtype=torch.float32) for _ in range(2))
    streams = watched(monkeypatch, model)
    batches = [(tiny_tokens(3, LENGTH, seed=seed), padding(kind)) for seed, kind in ((0, "none"), (1, "left"), (2, "right"))]
    found = [model(ids, attention_mask=mask, use_cache=False).logits for ids, mask in batches]
    # bloom's MLP is called with the residual stream of its own block; one key-value head is half of a layer, so that no MLP is pruned.
    early = VARIANTS[variant][0] != "bloom" and (0, "mlp") in model._halves
    assert streams.log.count("mlp chosen on second") == (2 * len(batches) if early else 0)
    monkeypatch.setattr(Half, "begin", lambda *_: None)
    for (ids, mask), logits in zip(batches, found, strict=True):
        torch.testing.assert_close(plain(ids, attention_mask=mask, use_cache=False).logits, logits, rtol=0, atol=0)


def test_a_pass_that_fails_leaves_nothing_begun():
    model, ids = probed("llama", how=ProbePruning(probe=EARLIER)), tiny_tokens(3, LENGTH)
    expected = model(ids).logits
    handle = layers_of(model.model)[1].self_attn.q_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    half = model._halves[1, "attention"]
    small = half.small.self_attn.inner.q_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tiny_tokens(3, LENGTH, seed=3))
    handle.remove()
    small.remove()
    assert torch.equal(model(ids).logits, expected)
