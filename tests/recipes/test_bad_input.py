"""Settings, places and texts that cannot be used: one clear paragraph, exit code 2, nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from tests.recipes.refusal import command, job, refused, refused_eval, statistics, tree
from tests.recipes.tiny_checkpoint import text_beside

Make = Callable[..., Path]

# Settings -> what the message says: what was given, what is allowed, what to do.
SETTINGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"ratio": 0.0}, ["ratio = 0.0", "above 0 and below 1"]),
    ({"ratio": 1.0}, ["ratio = 1.0", "above 0 and below 1"]),
    ({"ratio": -0.2}, ["ratio = -0.2", "above 0 and below 1"]),
    ({"ratio": float("nan")}, ["ratio = nan", "above 0 and below 1"]),
    ({"ratio": 0.99}, ["parameters must leave", "% of that can", "smaller ratio"]),
    ({"ratio": None}, ["no target was given", "ratio, target_params, target_size"]),
    ({"target_params": "20K"}, ["ratio = 0.3 and target_params = '20K'", "Exactly one"]),
    ({"method": "flpa"}, ["unknown method 'flpa'", "Did you mean flap?", "wanda-sp"]),
    ({"allocation": "globl"}, ["unknown allocation 'globl'", "Did you mean global?", "uniform"]),
    ({"calibration": "wikitex2"}, ["'wikitex2' is neither a preset nor a file", "Did you mean wikitext2?", ".jsonl"]),
    ({"evaluation": "tinystory"}, ["'tinystory' is neither", "Did you mean tinystories?", "stdlib"]),
    ({"out": None}, ["no output directory was given", "dry_run"]),
    ({"device": "cuda"}, ["--device cuda", "no CUDA device", "--device cpu"]),
    ({"device": "tpu"}, ["device = 'tpu'", "cpu, cuda or cuda:N"]),
    ({"max_memory": "1MiB"}, ["--max-memory is 1.00 MiB", "this needs about", "Give more"]),
    ({"max_memory": "much"}, ["max_memory: 'much'", "2GiB"]),
    ({"protect": "0-4"}, ["layer 4 of '0-4' does not exist", "2 layers", "0 to 1"]),
    ({"protect": "-3"}, ["layer -3", "-1 to -2"]),
    ({"protect": "0-1"}, ["protects all 2 layers", "Name fewer"]),
    ({"protect": "0", "ratio": 0.9}, ["parameters must leave", "protect fewer layers"]),
    ({"ratio": None, "target_params": "1B"}, ["--target-params 1B", "30,576 parameters already", "smaller target"]),
    ({"ratio": None, "target_params": "5000"}, ["--target-params 5000", "embedding and head stay", "larger target"]),
    ({"ratio": None, "target_params": "7K"}, ["parameters must leave", "% of that can"]),
    ({"ratio": None, "target_size": "1GiB"}, ["--target-size 1GiB", "119.44 KiB of weights already", "smaller target"]),
    ({"ratio": None, "target_size": "9KB"}, ["--target-size 9KB", "larger target"]),
    ({"round_to": 36}, ["--round-to 36", "36 channels", "below 36"]),
    ({"round_to": 0}, ["round_to = 0", "1 or more"]),
    ({"round_to": 32, "axes": "ffn"}, ["parameters must leave", "smaller multiple"]),
    ({"axes": "heads"}, ["axes = 'heads'", "'kv', 'ffn' or 'group'"]),
    ({"axes": "kv,group"}, ["the same heads twice", "Give one of them"]),
    ({"format": "stock", "allocation": "global"}, ["--format stock cannot be had", "unequal sizes", "--allocation uniform"]),
    ({"format": "stock", "protect": "0"}, ["--format stock cannot be had", "unequal sizes", "without --protect"]),
    ({"method": "shortgpt", "axes": "kv,ffn"}, ["--axes kv,ffn", "--method shortgpt", "whole layers leave", "Leave it out"]),
    ({"method": "shortgpt", "allocation": "uniform"}, ["--allocation uniform", "whole layers leave", "Leave it out"]),
    ({"method": "shortgpt", "round_to": 8}, ["--round-to 8", "whole layers leave", "Leave it out"]),
    ({"method": "shortgpt", "compensate": "least-squares"}, ["--compensate least-squares", "whole layers leave"]),
    ({"method": "shortgpt", "ridge": 0.1}, ["--ridge 0.1", "whole layers leave", "Leave it out"]),
    ({"method": "shortgpt", "gradient": "backprop"}, ["--gradient backprop", "--method shortgpt uses no gradient"]),
    ({"method": "shortgpt:n=2"}, ["method 'shortgpt' has no option 'n'", "no options"]),
    ({"method": "shortgtp"}, ["unknown method 'shortgtp'", "Did you mean shortgpt?"]),
    ({"method": "shortgpt", "ratio": 0.2}, ["less than half a layer", "2 layers", "from 0.500 to 0.500", "another --method"]),
    ({"method": "shortgpt", "ratio": 0.8}, ["nearest to 2 layers, and at most 1 may leave", "one must stay"]),
    ({"method": "shortgpt", "protect": "0-1"}, ["protects all 2 layers", "Name fewer"]),
    ({"ridge": 0.1, "compensate": "none"}, ["--ridge 0.1", "--compensate none has none", "least-squares and sequential"]),
    ({"ridge": 0.1, "compensate": "bias"}, ["--ridge 0.1", "--compensate bias has none", "choose one of those"]),
    (
        {"ridge": 0.1, "compensate": "sequential:matrices=all,ridge=0.2"},
        ["--ridge 0.1", "--compensate sequential:matrices=all,ridge=0.2 has a ridge already", "give the ridge once"],
    ),
    ({"ridge": 0.1, "compensate": "sequntial"}, ["unknown compensation 'sequntial'", "Did you mean sequential?"]),
    ({"compensate": "least-square"}, ["unknown compensation 'least-square'", "Did you mean least-squares?", "sequential"]),
    ({"compensate": "least-squares:rigde=1"}, ["'least-squares' has no option 'rigde'", "Did you mean ridge?", "Known: ridge"]),
    ({"compensate": "sequential:matrix=all"}, ["'sequential' has no option 'matrix'", "Did you mean matrices?"]),
    ({"compensate": "sequential:matrices=q"}, ["sequential's matrices is 'q'", "Allowed: all, readers"]),
    ({"compensate": "sequential:ridge=-2"}, ["sequential's ridge is -2.0", "0 and above, or -1"]),
    ({"compensate": "sequential:ridge=x"}, ["option ridge is 'x'", "Allowed: a number"]),
    ({"compensate": "sequential:readers"}, ["'readers' of 'sequential:readers' is not an option", "sequential:option=value"]),
    ({"compensate": "none:ridge=1"}, ["'none' has no option 'ridge'", "It has no options"]),
    ({"effort": "best", "method": "flap"}, ["method = 'flap' and effort = 'best' were given", "Give one of them"]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), SETTINGS, ids=lambda value: str(value)[:60])
def test_settings_are_refused(checkpoint: Make, options: dict[str, Any], says: list[str]) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    model = checkpoint("llama")
    message = refused(model, **job(model, **options))
    assert all(part in message for part in says), message
    assert not (model.parent / ".secateur").exists(), "nothing had begun"


FAMILIES: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    (
        "mistral",
        {},
        {"compensate": "bias", "format": "stock"},
        ["'mistral' model has no bias slot", "least-squares", "drop --format stock"],
    ),
    (
        "qwen2",
        {},
        {"compensate": "bias", "format": "stock"},
        ["'qwen2' model has no bias slot", "least-squares", "drop --format stock"],
    ),
    ("llama", {"num_key_value_heads": 8}, {"axes": "group"}, ["--axes group", "one query head per kv head", "kv,ffn"]),
    ("llama", {"num_key_value_heads": 1}, {"axes": "kv"}, ["along --axes kv", "are ffn,group", "other --axes"]),
    ("gpt2", {}, {"format": "stock", "axes": "kv"}, ["nothing of this gpt2 model", "drop --format stock"]),
    ("gpt2", {}, {"format": "stock", "ratio": 0.6}, ["parameters must leave", "drop --format stock", "only ffn"]),
    ("bloom", {}, {"format": "stock"}, ["nothing of this bloom model", "drop --format stock"]),
    ("gpt2", {}, {"seq_len": 33, "samples": 2}, ["--seq-len is 33", "32 positions", "at most 32"]),
    ("opt", {}, {"seq_len": 33, "samples": 2}, ["--seq-len is 33", "32 positions", "at most 32"]),
    (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        {"method": "shortgpt", "ratio": 0.5},
        ["layer 1 of this gpt2 model would become layer 0", "`attn.scaling`", "another --method"],
    ),
    ("llama", {"vocab_size": 20}, {}, ["token id", "only 20 rows", "the model's own tokenizer files"]),
]


@pytest.mark.parametrize(("model_type", "shape", "options", "says"), FAMILIES, ids=lambda value: str(value)[:40])
def test_settings_that_a_model_cannot_follow_are_refused(
    checkpoint: Make, model_type: str, shape: dict[str, Any], options: dict[str, Any], says: list[str]
) -> None:
    model = checkpoint(model_type, **shape)
    message = refused(model, **job(model, **options))
    assert all(part in message for part in says), message


def test_the_command_line_refuses_an_unknown_effort_itself(checkpoint: Make) -> None:
    model = checkpoint("llama")
    done = command("prune", str(model), **job(model, effort="bst"))
    assert done.exit_code == 2
    assert "best" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(secateur.UserError, match="Did you mean best"):
        secateur.prune(model, **job(model, effort="bst"))


def test_an_unknown_keyword_is_refused(checkpoint: Make) -> None:
    model = checkpoint("llama")
    with pytest.raises(secateur.UserError, match="unknown setting 'calibratoin'. Did you mean calibration"):
        secateur.prune(model, **job(model), calibratoin="x")  # type: ignore[call-overload]


def test_a_refusal_is_one_json_object_too(checkpoint: Make) -> None:
    model = checkpoint("llama")
    done = command("prune", str(model), json_wanted=True, **job(model, method="flpa"))
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"] == done.stderr.splitlines()[-1].removeprefix("error: ")


TEXTS: list[tuple[bytes, dict[str, Any], list[str]]] = [
    (b"a few words", {}, ["first four fifths of text.txt", "it has 9 tokens", "4 samples of 16 tokens need 64"]),
    (b"abc " * 20, {"samples": 5}, ["it has 65 tokens", "need 80", "at most 4", "a longer text"]),
    (
        b"abcd" * 16,
        {"evaluation": None, "samples": 3},
        ["evaluation text", "it has 14 tokens", "one window of 16 tokens needs 16"],
    ),
    (b" \n", {}, ["is empty", "presets"]),
    (b"\xff\xfe\x00", {}, ["not UTF-8", "Convert it"]),
]


@pytest.mark.parametrize(("body", "options", "says"), TEXTS, ids=lambda value: str(value)[:20])
def test_texts_that_do_not_do_are_refused(checkpoint: Make, body: bytes, options: dict[str, Any], says: list[str]) -> None:
    model = checkpoint("llama")
    text_beside(model).write_bytes(body)
    message = refused(model, **job(model, **options))
    assert all(part in message for part in says), message


def test_an_evaluation_text_that_is_too_short_is_refused(checkpoint: Make) -> None:
    model = checkpoint("llama")
    text_beside(model).write_text("few words")
    message = refused_eval(model, text=str(text_beside(model)), seq_len=16)
    assert "it has 10 tokens" in message and "16 tokens needs 16" in message


def test_an_output_in_use_is_refused_and_replaced_by_force(checkpoint: Make) -> None:
    model = checkpoint("llama")
    first = secateur.prune(model, **job(model, ratio=0.2))
    message = refused(model, **job(model))
    assert "not empty" in message and "--force to replace" in message
    second = secateur.prune(model, **job(model, ratio=0.5), force=True)
    assert second.parameters_after < first.parameters_after
    assert sum(p.numel() for p in secateur.load(second.out).parameters()) == second.parameters_after
    assert {path.name for path in model.parent.iterdir()} == {"model", "text.txt", "out", ".secateur"}


@pytest.mark.parametrize("names", [["thesis.tex"], ["config.json", "package.json"], ["sub/model.safetensors"]])
def test_force_replaces_models_only(checkpoint: Make, names: list[str]) -> None:
    model = checkpoint("llama")
    for name in names:
        path = model.parent / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("years of work")
    assert "holds no model" in refused(model, **job(model), force=True)


def test_places_that_would_swallow_an_input_are_refused(checkpoint: Make) -> None:
    model = checkpoint("llama")
    home = model.parent
    for out in (model, model / "pruned", model / "a" / "b"):
        for force in ({}, {"force": True}):
            assert "never changed" in refused(model, **job(model, out=out), **force)
    shutil.copy(model / "config.json", home / "config.json")
    shutil.copy(model / "model.safetensors", home / "model.safetensors")
    elsewhere = str(shutil.copy(text_beside(model), home.parent / f"{home.name}.txt"))
    assert "holds the model" in refused(model, **job(model, out=home, calibration=elsewhere), force=True)
    assert "holds the text 'text.txt'" in refused(model, **job(model, out=home), force=True)
    assert "the run directory" in refused(model, **job(model, run_dir=home / "out" / "runs"))
    assert "the run directory" in refused(model, **job(model, run_dir=home / "out"))


def test_places_that_cannot_be_a_directory_are_refused(checkpoint: Make) -> None:
    model = checkpoint("llama")
    file, link = model.parent / "file", model.parent / "link"
    file.write_text("")
    link.symlink_to(model.parent / "elsewhere")
    assert "is a file or a link" in refused(model, **job(model, out=file), force=True)
    assert "is a file or a link" in refused(model, **job(model, out=link), force=True)
    assert f"{str(file)!r} is not a directory" in refused(model, **job(model, out=file / "below" / "out"))
    assert "Give another --run-dir" in refused(model, **job(model, run_dir=file))


def test_a_dry_run_refuses_the_same_and_writes_nothing(checkpoint: Make) -> None:
    model = checkpoint("llama")
    before = tree(model.parent)
    assert secateur.prune(model, **job(model, out=model.parent / "new" / "out"), dry_run=True).parameters_after < 30_576
    assert tree(model.parent) == before and not statistics(model.parent)
    assert "unknown method" in refused(model, **job(model, out=None, method="flpa"), dry_run=True)
