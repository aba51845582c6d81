"""Contract of whole layers that leave: for every family, the result is the original with those layers skipped, and it is stock."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from secateur.errors import UserError
from secateur.export.huggingface import save_config
from secateur.export.load import load
from secateur.export.stock import shape_of
from secateur.families.binding import bind
from secateur.families.depth import check_renumbered, shortened
from secateur.plan import Plan
from secateur.statistics.layer_cosine import LayerCosine
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.collect import Request, Store, by_type, collect
from secateur.streaming.module import ModuleSource
from secateur.streaming.walk import LAYER, Walk
from secateur.surgery.compensate import NoCompensation
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.verify import Verifier
from secateur.surgery.write import Shards, write
from tests.contract.masking import Float64, layers_of, logits, masked
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_config, tiny_model, tiny_tokens

F64, CPU = torch.float64, torch.device("cpu")
EXACT = {"rtol": 1e-9, "atol": 1e-9}
DEPTH = 4
TURNS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
DEEP: dict[str, dict[str, Any]] = {
    **{model_type: {"num_hidden_layers": DEPTH} for model_type in MODEL_TYPES},
    **{m: {"num_hidden_layers": DEPTH, **TURNS} for m in ("qwen2", "qwen3", "gemma2", "gemma3_text")},
    "qwen3": {"num_hidden_layers": DEPTH, **TURNS, "use_sliding_window": True, "sliding_window": 4},
    "gpt2": {"n_layer": DEPTH},
    "bloom": {"n_layer": DEPTH},
    "gpt_neo": {"num_layers": DEPTH, "attention_types": [[["global", "local"], 2]]},
}
# Others move up, turn by turn out of step; two of one kind; two neighbours.
DROPS = ((0,), (1, 2), (0, 2), (1, 3))
TIED = ("llama-tied", "llama-bias", "gpt_neox-tied", "opt-350m", "gpt2-default-ffn", "bloom-post-norm")


class Skipped(nn.Module):
    """A layer that hands the hidden state through."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self.returns_tuple else hidden_states


def deep_model(model_type: str, **overrides: Any) -> nn.Module:
    return tiny_model(model_type, **{**DEEP[model_type], **overrides})


def without(model: nn.Module, dropped: Sequence[int]) -> nn.Module:
    """The oracle: the original, whose layers keep their numbers, masks and kinds."""
    result = copy.deepcopy(model)
    for number in dropped:
        layers_of(result)[number] = Skipped(model.config.model_type in ("bloom", "gpt_neo"))
    return result


def cut(directory: Path, dropped: tuple[int, ...], out: Path, layers: Sequence[Any] | None = None) -> Plan:
    """Written and checked as a job does it."""
    source = Checkpoint.open(directory)
    binding = source.binding
    plan = Plan(
        model_type=binding.model_type, fingerprint=source.fingerprint, sizes=dict(binding.sizes), dropped=dropped,
        layers=tuple(layers or ({},) * binding.num_layers),
    )  # fmt: skip
    target = bind(binding.config, dtype=F64)
    rebuild = Rebuild(source=source, target=target, plan=plan, compensation=NoCompensation(), seen=lambda *_: {})
    shape = shape_of(binding, [plan.layer_sizes(i) for i in plan.remaining], (), dropped)
    out.mkdir()
    with Float64():
        verifier = Verifier(rebuild, tiny_tokens(2, 9))
        assert tuple(write(rebuild, source, Shards.of(rebuild, source, limit=20_000), out, verifier)) == plan.remaining
    assert max(verifier.errors) < 1e-12
    save_config(shape.config, out)
    (out / "secateur.json").write_text(f'{{"stock": {str(shape.stock).lower()}, "plan": {plan.to_json()}}}')
    assert shape.stock is (layers is None)
    return plan


def plain(directory: Path) -> nn.Module:
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=F64, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **options)


@pytest.mark.parametrize("dropped", DROPS, ids=str)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_stock_class_computes_as_the_original_with_the_layers_skipped(
    model_type: str, dropped: tuple[int, ...], tmp_path: Path
) -> None:
    model, ids = deep_model(model_type), tiny_tokens(2, 12)
    model.save_pretrained(tmp_path / "model")
    cut(tmp_path / "model", dropped, tmp_path / "out")
    small = plain(tmp_path / "out")
    assert len(layers_of(small)) == small.config.num_hidden_layers == DEPTH - len(dropped)
    torch.testing.assert_close(logits(small, ids), logits(without(model, dropped), ids), **EXACT)
    assert torch.equal(greedy(small, ids), greedy(small, ids, use_cache=False))
    again = Checkpoint.open(tmp_path / "out")
    assert again.binding.num_layers == DEPTH - len(dropped) and not again.layers and not again.unused
    assert again.num_parameters == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("variant", TIED)
def test_members_with_other_weights_are_cut_alike(variant: str, tmp_path: Path) -> None:
    model_type, overrides = VARIANTS[variant]
    model, ids = deep_model(model_type, **overrides), tiny_tokens(2, 12)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    cut(tmp_path / "model", (1,), tmp_path / "out")
    torch.testing.assert_close(logits(plain(tmp_path / "out"), ids), logits(without(model, (1,)), ids), **EXACT)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layers_leave_beside_units_and_the_others_may_be_unequal(model_type: str, tmp_path: Path) -> None:
    model, ids = deep_model(model_type), tiny_tokens(2, 12)
    model.save_pretrained(tmp_path / "model")
    layers = ({"ffn": (0, 3, 4)}, {}, {"kv": (1, 2)}, {"ffn": (1, 2), "kv": (0,)})
    cut(tmp_path / "model", (1,), tmp_path / "out", layers)
    expected = logits(without(masked(model, layers), (1,)), ids)
    torch.testing.assert_close(logits(load(tmp_path / "out", dtype=F64), ids), expected, **EXACT)
    assert Checkpoint.open(tmp_path / "out").layers == (layers[0], layers[2], layers[3])


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
def test_a_checkpoint_without_the_models_prefix_keeps_its_spelling(model_type: str, tmp_path: Path) -> None:
    model, ids = deep_model(model_type), tiny_tokens(2, 12)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    cut(tmp_path / "model", (0, 2), tmp_path / "out")
    keys = {key for part in (tmp_path / "out").glob("*.safetensors") for key in load_file(part)}
    assert keys == {key for key in tensors if not key.startswith(("h.2.", "h.3."))}
    torch.testing.assert_close(logits(plain(tmp_path / "out"), ids), logits(without(model, (0, 2)), ids), **EXACT)


@pytest.mark.parametrize(
    ("model_type", "overrides", "stay", "fields"),
    [
        ("qwen2", {}, (1, 2), {"layer_types": ["full_attention", "sliding_attention"]}),
        ("qwen2", {"layer_types": None, "max_window_layers": 2}, (0, 2, 3),
         {"max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
        ("qwen3", {"max_window_layers": 28}, (0, 3), {"max_window_layers": 26}),
        ("gemma3_text", {}, (0, 2), {"layer_types": ["sliding_attention", "sliding_attention"]}),
        ("gpt_neo", {}, (1, 2, 3), {"attention_layers": ["local", "global", "local"], "num_layers": 3}),
        ("gpt_neo", {}, (1, 3), {"attention_types": [[["local", "local"], 1]]}),
        ("gpt2", {}, (3,), {"n_layer": 1}),
    ],
)  # fmt: skip
def test_the_configuration_keeps_in_step(
    model_type: str, overrides: dict[str, Any], stay: tuple[int, ...], fields: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(model_type, **{**DEEP[model_type], **overrides})
    binding = bind(config)
    before = config.to_dict()
    found = shortened(config, binding.family, stay)
    assert {name: getattr(found, name) for name in fields} == fields
    assert config.to_dict() == before, "the original's is left alone"
    save_config(found, tmp_path)
    again = type(found).from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in fields} == fields


def test_a_list_that_only_happens_to_be_as_long_is_no_list_of_layers() -> None:
    config = tiny_config("llama", num_hidden_layers=2, eos_token_id=[1, 2])
    assert shortened(config, bind(config).family, (1,)).eos_token_id == [1, 2]


def test_a_layer_that_would_compute_something_else_under_its_new_number_is_refused() -> None:
    binding = bind(tiny_config("gpt2", n_layer=DEPTH, scale_attn_by_inverse_layer_idx=True))
    check_renumbered(binding, (0, 1, 2))
    with pytest.raises(UserError, match=r"layer 2 of this gpt2 model would become layer 1 .*`attn.scaling`"):
        shape_of(binding, [binding.sizes] * 3, (), (1,))


@pytest.mark.parametrize(("model_type", "told"), [("gemma2", "sliding|layer_type"), ("gpt_neo", "attention|attn.*bias")])
def test_a_family_that_forgets_what_its_layers_differ_in_is_refused(model_type: str, told: str) -> None:
    binding = bind(tiny_config(model_type, **DEEP[model_type]))
    forgetful = replace(binding, family=replace(binding.family, depth={}))
    check_renumbered(binding, (1, 3))
    with pytest.raises(UserError, match=f"layer 1 of this {model_type} model would become layer 0 .*`.*({told})"):
        check_renumbered(forgetful, (1, 3))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_walk_sees_the_hidden_states_before_and_after_each_layer(model_type: str, tmp_path: Path) -> None:
    model, ids = deep_model(model_type), tiny_tokens(4, 8)
    turned: list[float] = []
    for layer in layers_of(model):
        layer.register_forward_hook(
            lambda _, args, kwargs, out: turned.append(
                cosine_similarity(
                    args[0] if args else kwargs["hidden_states"], out[0] if isinstance(out, tuple) else out, dim=-1
                ).mean().item()
            ),
            with_kwargs=True,
        )  # fmt: skip
    logits(model, ids)
    store, request = Store(directory=tmp_path), Request(kinds={LAYER: frozenset({"layer-cosine"})})
    with Float64():
        walk = Walk.over(ModuleSource.of(model), device=CPU, dtype=F64, tokens=24)  # 3 blocks a micro-batch, then 1
        assert list(collect(walk, ids, request, store)) == list(range(DEPTH))
    found = [by_type(store.load(i))[LAYER][LayerCosine] for i in range(DEPTH)]
    assert [one.count for one in found] == [ids.numel()] * DEPTH
    assert [one.mean for one in found] == pytest.approx(turned, rel=1e-9)
