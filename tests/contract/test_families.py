"""What every family's table promises: it names every weight, and slicing by it equals masking. Over all 14 model types."""

import copy
import dataclasses
import random
import subprocess
import sys
from functools import cache
from importlib.metadata import EntryPoint

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from secateur import axes, registry
from secateur.axes import PRUNABLE, Kept
from secateur.errors import UserError
from secateur.families import TABLES, describe, family_for, model_types
from secateur.families.family import Family
from tests.contract.masking import (
    draw_kept,
    forward,
    layers_of,
    logits,
    masked,
    naive_mask,
    poisoned,
    sizes_of,
    sliced,
    specs_of,
)
from tests.contract.tiny import MODEL_TYPES, VARIANTS, tiny_config, tiny_model, tiny_tokens

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SDPA = tuple(t for t in MODEL_TYPES if t not in ("gemma2", "gpt_neo", "bloom"))  # the others' classes have no such path


@cache
def dense(variant: str, attention: str = "eager") -> torch.nn.Module:
    """Shared between tests, none of which changes it."""
    model_type, overrides = VARIANTS[variant]
    return tiny_model(model_type, attention=attention, **overrides)


def prunable(variant: str) -> tuple[str, ...]:
    sizes = sizes_of(dense(variant))
    return tuple(axis for axis in PRUNABLE if sizes.get(axis, 1) > 1)


def draw_plan(model: torch.nn.Module, pruned: tuple[str, ...], seed: int) -> list[Kept]:
    """Every layer has kept sets, and sizes, of its own."""
    rng = random.Random(seed)
    return [draw_kept(sizes_of(model), pruned, rng) for _ in layers_of(model)]


def cases() -> list[tuple[str, tuple[str, ...]]]:
    """(variant, axes pruned together): each axis alone, kv with group, and all."""
    found = []
    for variant in VARIANTS:
        every = prunable(variant)
        together = [("kv", "group")] if set(every) > {"kv", "group"} else []
        found += [(variant, axes) for axes in [*((axis,) for axis in every), *together, every]]
    return found


class TestTable:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_names_every_weight_with_its_shape(self, variant: str) -> None:
        model = dense(variant)
        specs, sizes = specs_of(model), sizes_of(model)
        found = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert found == {name: axes.shape(specs[name], sizes) for name in found if name in specs}

    @pytest.mark.parametrize("family", {id(f): f for f in map(family_for, map(tiny_config, MODEL_TYPES))}.values())
    def test_names_no_weight_that_no_member_has(self, family: Family) -> None:
        found: set[str] = set()
        for variant, (model_type, _) in VARIANTS.items():
            if model_type in family.model_types:
                found |= {name for name, _ in dense(variant).named_parameters(remove_duplicate=False)}
        first = f"{family.layers}.0."
        assert set(family.outer) == {name for name in found if not name.startswith(family.layers + ".")}
        assert set(family.layer) == {name.removeprefix(first) for name in found if name.startswith(first)}

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_prunable_axes_have_one_reader_matrix(self, variant: str) -> None:
        model, family = dense(variant), family_for(dense(variant).config)
        present = {name for name, _ in layers_of(model)[0].named_parameters()}
        for axis in prunable(variant):
            readers = [n for n, s in family.layer.items() if n in present and axes.parse(s).reads(axis)]
            writers = [n for n, s in family.layer.items() if n in present and axes.parse(s).mentions(axis) and n not in readers]
            assert len(readers) == 1
            assert len(writers) >= 1

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_returns_tuple_as_the_layer_does(self, model_type: str) -> None:
        model, family, seen = copy.deepcopy(dense(model_type)), family_for(tiny_config(model_type)), []
        layers_of(model)[0].register_forward_hook(lambda _module, _args, output: seen.append(output))
        logits(model, tiny_tokens())
        assert isinstance(seen[0], tuple) == family.returns_tuple
        hidden = seen[0][0] if family.returns_tuple else seen[0]
        assert hidden.shape == (2, 9, sizes_of(model)["hidden"])

    @pytest.mark.parametrize("model_type", [t for t in MODEL_TYPES if family_for(tiny_config(t)).renames])
    def test_renames_as_from_pretrained_does(self, model_type: str, tmp_path) -> None:
        model = dense(model_type)
        model.save_pretrained(tmp_path)
        renames = {new: old for old, new in family_for(model.config).renames.items()}
        current = {name: p.detach().clone() for name, p in model.state_dict().items()}
        old = {renames.get(name, name): tensor for name, tensor in current.items()}
        assert set(old) != set(current)
        save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
        torch.testing.assert_close(again.state_dict(), current, rtol=0, atol=0)

    def test_models_without_renames_are_saved_under_the_table_names(self, tmp_path) -> None:
        model = dense("bloom")
        model.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "model.safetensors")
        assert set(saved) == {name for name, _ in model.named_parameters()}


class TestSlicing:
    @pytest.mark.parametrize(
        ("variant", "pruned"), cases(), ids=lambda value: value if isinstance(value, str) else "+".join(value)
    )
    def test_equals_masking(self, variant: str, pruned: tuple[str, ...]) -> None:
        model, tokens = dense(variant), tiny_tokens()
        for seed in range(2):
            plan = draw_plan(model, pruned, seed)
            torch.testing.assert_close(logits(sliced(model, plan), tokens), logits(masked(model, plan), tokens), **EXACT)

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_equals_masking_for_any_plan(self, data: st.DataObject) -> None:
        variant = data.draw(st.sampled_from(sorted(VARIANTS)))
        model = dense(variant)
        pruned = tuple(data.draw(st.lists(st.sampled_from(prunable(variant)), unique=True)))
        plan = draw_plan(model, pruned, data.draw(st.integers(0, 2**32)))
        tokens = tiny_tokens(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), data.draw(st.integers(0, 9)))
        torch.testing.assert_close(logits(sliced(model, plan), tokens), logits(masked(model, plan), tokens), **EXACT)

    @pytest.mark.parametrize("model_type", SDPA)
    def test_equals_masking_in_sdpa(self, model_type: str) -> None:
        model, tokens = dense(model_type, "sdpa"), tiny_tokens()
        plan = draw_plan(model, prunable(model_type), 0)
        torch.testing.assert_close(logits(sliced(model, plan), tokens), logits(masked(model, plan), tokens), **EXACT)

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_equals_masking_with_padding_and_a_cache(self, model_type: str) -> None:
        model, tokens, mask = dense(model_type), tiny_tokens(), torch.ones(2, 9, dtype=torch.long)
        mask[0, :3] = 0
        plan = draw_plan(model, prunable(model_type), 1)
        want = logits(masked(model, plan), tokens, attention_mask=mask, use_cache=False)
        small = sliced(model, plan)
        cache = forward(small, tokens[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
        got = logits(small, tokens[:, 8:], attention_mask=mask, past_key_values=cache)
        torch.testing.assert_close(got[:, 0], want[:, 8], **EXACT)
        torch.testing.assert_close(logits(small, tokens, attention_mask=mask)[:, 3:], want[:, 3:], **EXACT)

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_never_reads_a_dropped_unit(self, model_type: str) -> None:
        model, tokens = dense(model_type), tiny_tokens()
        plan = draw_plan(model, prunable(model_type), 2)
        bad = poisoned(model, plan)
        assert not torch.cat([p.flatten() for p in bad.parameters()]).isfinite().all()
        small = sliced(bad, plan)
        assert all(p.isfinite().all() for p in small.parameters())
        assert torch.equal(logits(small, tokens), logits(sliced(model, plan), tokens))

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_leaves_the_model_it_slices_alone(self, model_type: str) -> None:
        model, tokens = dense(model_type), tiny_tokens()
        before = logits(model, tokens)
        sliced(model, draw_plan(model, prunable(model_type), 3))
        assert torch.equal(logits(model, tokens), before)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_kept_mask_agrees_with_looking_every_position_up(self, variant: str) -> None:
        model = dense(variant)
        sizes, (kept, *_) = sizes_of(model), draw_plan(model, prunable(variant), 4)
        for text in family_for(model.config).layer.values():
            for dim in axes.parse(text).dims:
                assert torch.equal(axes.kept_mask(dim, sizes, kept), naive_mask(dim, sizes, kept))


class TestResize:
    ATTRS = tuple((t, attr) for t in MODEL_TYPES for attr in family_for(tiny_config(t)).attrs)

    @pytest.mark.parametrize(("model_type", "attr"), ATTRS)
    def test_every_attribute_of_the_table_is_needed(self, model_type: str, attr: str) -> None:
        model, family, tokens = dense(model_type), family_for(tiny_config(model_type)), tiny_tokens()
        sizes = sizes_of(model)
        counts = {"kv": 1, "group": 1} if "group" in sizes else {"kv": 3}
        plan = [draw_kept(sizes, counts, random.Random(5), counts) for _ in layers_of(model)]
        without = dataclasses.replace(family, attrs={a: s for a, s in family.attrs.items() if a != attr})
        want = logits(masked(model, plan), tokens)
        torch.testing.assert_close(logits(sliced(model, plan), tokens), want, **EXACT)
        try:
            got = logits(sliced(model, plan, without), tokens)
        except (RuntimeError, ValueError):  # shapes do not fit
            return
        assert (got - want).abs().max() > 1e-3

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_linear_modules_say_their_true_widths(self, model_type: str) -> None:
        model = dense(model_type)
        seen = 0
        for layer in layers_of(sliced(model, draw_plan(model, prunable(model_type), 6))):
            for module in layer.modules():
                for names in (("out_features", "in_features"), ("nx", "nf")):
                    if all(hasattr(module, name) for name in names):
                        assert tuple(getattr(module, name) for name in names) == tuple(module.weight.shape)
                        seen += 1
        assert seen >= 8

    def test_a_layer_gets_a_configuration_of_its_own(self) -> None:
        model = dense("phi3")
        small = sliced(model, [{"kv": (0, 2)}, {"kv": (1,)}])
        heads = [layer.self_attn.config.num_attention_heads for layer in layers_of(small)]
        assert heads == [4, 2]
        assert small.config.num_attention_heads == model.config.num_attention_heads == 8

    def test_bloom_without_sliced_alibi_is_wrong(self) -> None:
        """Nothing fails when the batch times the heads fits by chance: the slopes are those of other heads."""
        model, tokens = dense("bloom"), tiny_tokens()
        plan = [{"kv": (1, 3, 4, 6)} for _ in layers_of(model)]
        naive = sliced(model, plan, dataclasses.replace(family_for(model.config), inputs={}))
        naive.transformer.num_heads = 4  # the head count set everywhere, and yet:
        want = logits(masked(model, plan), tokens)
        assert (logits(naive, tokens) - want).abs().max() > 1e-3
        torch.testing.assert_close(logits(sliced(model, plan), tokens), want, **EXACT)


class TestLookup:
    def test_tables_tiny_configurations_and_stock_entries_are_the_same_model_types(self) -> None:
        assert model_types()[: len(TABLES)] == MODEL_TYPES
        for model_type in MODEL_TYPES:
            family = family_for(tiny_config(model_type))
            assert model_type in family.model_types
            assert set(family.stock) == set(family.model_types)

    def test_an_unknown_architecture_is_told_what_is_supported_and_how_to_add_one(self) -> None:
        with pytest.raises(UserError, match="'t5' is not supported") as error:
            family_for(type("Config", (), {"model_type": "t5"})())
        assert all(name in str(error.value) for name in (*MODEL_TYPES, "docs/families.md"))

    def test_a_configuration_without_a_model_type_is_refused(self) -> None:
        with pytest.raises(UserError, match="None is not supported"):
            family_for(object())

    def test_other_packages_add_families(self, monkeypatch: pytest.MonkeyPatch) -> None:
        good = EntryPoint("new", "secateur.families.opt:OPT", "secateur.families")
        monkeypatch.setattr(registry, "entry_points", lambda group: [good] if group == "secateur.families" else [])
        assert model_types()[-1] == "new"
        config = type("Config", (), {"model_type": "new"})()
        with pytest.raises(UserError, match="`stock` entry for 'new'"):  # OPT's table is not one for the type `new`
            family_for(config)
        family = family_for(tiny_config("opt"))
        mended = dataclasses.replace(family, stock={**family.stock, "new": family.stock["opt"]})
        monkeypatch.setattr("secateur.families.opt.OPT", mended)
        assert family_for(config) is mended

    def test_listing_and_reading_tables_does_not_import_torch(self) -> None:
        script = (
            "import sys; from secateur.families import model_types, describe;"
            "assert len(model_types()) >= 14; assert 'gpt_neox' in describe.markdown();"
            "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_the_page_names_every_model_type_and_prunable_axis(self) -> None:
        page = describe.markdown()
        assert all(f"| {name} |" in page for name in MODEL_TYPES)
        assert describe.AXES == PRUNABLE
