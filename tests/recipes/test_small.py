"""Commands over a pruned model that each batch corrects: they say what `secateur.probe(model, small=...)` says."""

import argparse
import difflib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import RefitState, State, UserError
from secateur.calibration.blocks import draw_blocks, windows
from secateur.calibration.text import read_text
from secateur.calibration.tokens import tokenise
from secateur.recipes.demo import default_model
from secateur.recipes.dynamic import kept
from secateur.runtime.refitted import Refitted
from tests.recipes.refusal import command

CALIBRATION, EVALUATION = str(argparse.__file__), str(difflib.__file__)
DRAWN = {"calibration": CALIBRATION, "samples": 8, "seq_len": 64}
PROMPT = Path(difflib.__file__).read_text()[:3000]  # enough tokens to be probed


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "out"
    secateur.prune(
        default_model(), out=out, ratio=0.4, method="wanda-sp", compensate="least-squares", calibration=CALIBRATION, samples=8,
        seq_len=64,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def pair(small: Path) -> tuple[Refitted, Any]:
    whole = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    tokens = tokenise(read_text(CALIBRATION, role="calibration"), tokenizer)
    return secateur.probe(whole, small=small).calibrate(draw_blocks(tokens, samples=8, seq_len=64, seed=0).ids), tokenizer


def result(*words: str, **options: Any) -> dict[str, Any]:
    done = command(*words, json_wanted=True, **options)
    assert done.exit_code == 0, done.exception or done.stderr
    return json.loads(done.stdout)


def problem(*words: str, **options: Any) -> str:
    done = command(*words, **options)
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr.splitlines()[-1].removeprefix("error: ")


def test_it_says_what_the_library_says(small: Path, pair: tuple[Refitted, Any]) -> None:
    model, tokenizer = pair
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > model.how.fewest
    out = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    options: dict[str, Any] = {"max_new_tokens": 24, "dtype": "fp32", "small": small, **DRAWN}
    found = result("generate", str(default_model()), "--prompt", PROMPT, **options)
    assert found["completions"][0]["text"] == tokenizer.decode(out)
    assert found["widths"]["ffn"]["kept"] < found["widths"]["ffn"]["of"] == 8 * 640
    assert (found["small"], found["ratio"]) == (str(small), None) and "argparse.py" in found["calibration"]
    plain = secateur.load(small, dtype=torch.float32)
    with torch.no_grad():
        assert (plain(ids).logits - model(ids).logits).abs().max() > 1e-3


def test_one_saved_state_is_the_same_tokens_in_two_processes(small: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    words = ["generate", str(default_model()), "--prompt", PROMPT, "--small", str(small), "--max-new-tokens", "16"]
    first = result(*words, save_state=state, **DRAWN)["completions"]
    assert len(RefitState.load(state).known) == 8
    line = [sys.executable, "-m", "secateur", *words, "--state", str(state), "--json"]
    runs = [json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    assert [run["completions"] for run in runs] == [first, first]
    assert runs[0]["calibration"] == "the state in state.safetensors"


def test_it_is_the_perplexity_of_the_batches(small: Path, pair: tuple[Refitted, Any]) -> None:
    model, tokenizer = pair
    ids = windows(tokenise(read_text(EVALUATION, role="evaluation"), tokenizer), seq_len=64, max_tokens=1280).ids
    with torch.no_grad():
        losses = [float(model(part, labels=part).loss) * len(part) for part in ids.split(8)]
    options: dict[str, Any] = {"text": EVALUATION, "max_tokens": 1280, "dtype": "fp32"}
    found = result("eval", str(default_model()), small=small, batch=8, **options, **DRAWN)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(ids)), rel=1e-5)
    assert (found["small"], found["ratio"], found["online"]) == (str(small), None, False)
    assert found["perplexity"] != pytest.approx(result("eval", str(small), seq_len=64, **options)["perplexity"], rel=1e-3)


def test_it_is_asked_what_it_knows(small: Path, pair: tuple[Refitted, Any], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")
    starts = ["import os\nimport sys\n\n\nclass Parser:\n    def __init__(self,", "def main():\n    parser = argparse."]
    rows = [
        {"context": start * 20, "continuation": end} for start, end in zip(starts, ("name):", "ArgumentParser()"), strict=True)
    ]
    file = tmp_path / "next.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = secateur.evaluate_tasks(default_model(), file, small=small, dtype="fp32", **DRAWN)
    model, tokenizer = pair
    assert found.small == str(small) and found.ratio is None and found.widths == kept(model)
    assert found.found["results"] == secateur.evaluate_tasks(model, file, tokenizer=tokenizer).found["results"]
    plain = secateur.evaluate_tasks(small, file, dtype="fp32").found["results"]["next"]
    assert found.found["results"]["next"]["perplexity,none"] != pytest.approx(plain["perplexity,none"], rel=1e-4)


def test_it_is_timed(small: Path) -> None:
    found = result(
        "bench", str(default_model()), str(small), small=small, batch="4", seq_len="64", new_tokens=2, runs=1, samples=2
    )  # fmt: skip
    assert [row["model"] for row in found["models"]] == ["model", "out", "dynamic"]
    assert all(row["peak_memory_bytes"] > 0 for row in found["models"])
    assert {cell["model"] for cell in found["cells"]} == {"model", "out", "dynamic"}
    assert found["small"] == str(small)


WRONG: list[tuple[list[str], dict[str, Any], list[str]]] = [
    (["generate", "--prompt", "a"], {"dynamic": 0.3}, ["dynamic = 0.3 and small", "one of them"]),
    (["generate", "--prompt", "a"], {"paper": True}, ["paper = True has no effect with `small`"]),
    (["generate", "--prompt", "a"], {"griffin": True}, ["griffin = True has no effect with `small`"]),
    (["generate", "--prompt", "a"], {"rechoose": 3}, ["rechoose = 3 has no effect with `small`"]),
    (["eval"], {"attention": "kv"}, ["attention = 'kv' has no effect with `small`"]),
    (["eval"], {"max_memory": "1GiB"}, ["max_memory", "memory = 'low'"]),
    (["bench"], {"small": "nowhere"}, ["'nowhere' is not a directory"]),
    (["eval"], {"small": str(default_model())}, ["has no secateur.json", "secateur prune"]),
]


@pytest.mark.parametrize(("words", "options", "says"), WRONG, ids=lambda value: str(value)[:50])
def test_what_cannot_be_is_refused(small: Path, words: list[str], options: dict[str, Any], says: list[str]) -> None:
    message = problem(words[0], str(default_model()), *words[1:], **{"small": small, **options})
    assert all(part in message for part in says), message
    assert message.endswith(".")


def test_what_belongs_to_another_model_is_refused(small: Path, tmp_path: Path, checkpoint: Any) -> None:
    assert "Give the model that the smaller one was pruned from." in problem(
        "generate", str(checkpoint("llama")), "--prompt", "a", small=small
    )
    State().save(tmp_path / "choice")
    assert "holds no state" in problem(
        "generate", str(default_model()), "--prompt", "a", small=small, state=tmp_path / "choice"
    )
    whole = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
    with pytest.raises(UserError, match="Give one of them"):
        secateur.probe(whole, 0.4, small=small)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="Leave it out"):
        secateur.probe(whole, small=small, rechoose=3)  # type: ignore[call-overload]
