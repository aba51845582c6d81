"""Commands over a model that is pruned anew for each batch: they say what transformers and `secateur.probe` say themselves."""

import argparse
import difflib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import ProbePruning, State
from secateur.calibration.blocks import draw_blocks, windows
from secateur.calibration.text import read_text
from secateur.calibration.tokens import tokenise
from secateur.recipes.demo import default_model
from tests.recipes.refusal import command, refused_eval, result
from tests.recipes.tiny_checkpoint import text_beside

Make = Callable[..., Path]
PROMPTS = ("import os\n\n\ndef ", "class Parser:\n    def __init__(self, name):\n        ")
CALIBRATION, EVALUATION = str(argparse.__file__), str(difflib.__file__)
DRAWN = {"calibration": CALIBRATION, "samples": 8, "seq_len": 64}


@pytest.fixture(scope="module")
def dense() -> tuple[Any, Any]:
    directory = default_model()
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
    ).eval(), AutoTokenizer.from_pretrained(directory)  # fmt: skip


def generated(model: Path, *prompts: str, **options: Any) -> list[dict[str, Any]]:
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    return result("generate", str(model), *words, **options)["completions"]


def problem(*words: str, **options: Any) -> str:
    """The message of a command that is refused: one paragraph, exit code 2, nothing on stdout."""
    done = command(*words, **options)
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].removeprefix("error: ")


def blocks(tokenizer: Any, *, seed: int = 0) -> torch.Tensor:
    tokens = tokenise(read_text(CALIBRATION, role="calibration"), tokenizer)
    return draw_blocks(tokens, samples=8, seq_len=64, seed=seed).ids


class TestGenerate:
    @pytest.mark.parametrize("given", [{}, {"dynamic": 0}], ids=["absent", "0"])
    @pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "two"])
    def test_with_nothing_left_out_it_says_what_transformers_says(
        self, dense: tuple[Any, Any], given: dict[str, Any], prompts: tuple[str, ...]
    ) -> None:
        model, tokenizer = dense
        tokenizer.padding_side = "left"
        ids = tokenizer(list(prompts), return_tensors="pt", padding=True)
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        expected = tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :])
        found = generated(default_model(), *prompts, max_new_tokens=24, dtype="fp32", **given)
        assert [one["text"] for one in found] == expected
        assert [(one["prompt"], one["new_tokens"]) for one in found] == [(prompt, 24) for prompt in prompts]

    @pytest.mark.parametrize(
        ("options", "how"),
        [
            ({}, ProbePruning()),
            ({"attention": "none"}, ProbePruning(attention="none")),
            ({"paper": True}, ProbePruning.paper()),
            ({"memory": "low", "rechoose": 4}, ProbePruning()),
        ],
        ids=["serving", "mlp only", "paper", "low memory"],
    )
    def test_probed_it_says_what_the_library_says(self, options: dict[str, Any], how: ProbePruning) -> None:
        model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(default_model())
        probed = secateur.probe(model, 0.4, how=how, memory=options.get("memory", "kept"), rechoose=options.get("rechoose"))
        ids = tokenizer(PROMPTS[0], return_tensors="pt")
        out = probed.calibrate(blocks(tokenizer)).generate(**ids, max_new_tokens=16, do_sample=False)
        found = result(
            "generate", str(default_model()), "--prompt", PROMPTS[0], max_new_tokens=16, dtype="fp32", dynamic=0.4, **DRAWN, **options
        )  # fmt: skip
        assert found["completions"][0]["text"] == tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
        assert found["widths"]["ffn"] == {"kept": probed.widths.ffn, "of": 640}
        assert found["calibration"].startswith("8 of ") and "argparse.py" in found["calibration"]

    def test_griffin_needs_no_calibration(self) -> None:
        model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(default_model())
        ids = tokenizer(PROMPTS[0], return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=16, do_sample=False)[0]
        probed = secateur.probe(model, 0.6, how=ProbePruning.griffin())
        out = probed.generate(**ids, max_new_tokens=16, do_sample=False)[0]
        found = result(
            "generate", str(default_model()), "--prompt", PROMPTS[0], max_new_tokens=16, dtype="fp32", dynamic=0.6, griffin=True
        )  # fmt: skip
        assert found["completions"][0]["text"] == tokenizer.decode(out[ids["input_ids"].shape[1] :])
        assert found["widths"] == {"ffn": {"kept": 256, "of": 640}} and found["calibration"] is None
        prompted = ids["input_ids"].shape[1] + 1  # and the first token, which the whole model says
        assert out[:prompted].tolist() == whole[:prompted].tolist() and out.tolist() != whole.tolist()

    def test_one_saved_state_is_the_same_tokens_in_two_processes(self, tmp_path: Path) -> None:
        state = tmp_path / "state.safetensors"
        first = generated(default_model(), *PROMPTS, dynamic=0.4, max_new_tokens=16, save_state=state, **DRAWN)
        assert len(State.load(state).histories) == 16
        line = [sys.executable, "-m", "secateur", "generate", str(default_model()), "--dynamic", "0.4", "--state", str(state)]
        words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        runs = [
            subprocess.run([*line, *words, "--max-new-tokens", "16", "--json"], capture_output=True, text=True, check=True)
            for _ in range(2)
        ]
        assert [json.loads(run.stdout)["completions"] for run in runs] == [first, first]
        assert json.loads(runs[0].stdout)["calibration"] == "the state in state.safetensors"

    def test_what_secateur_wrote_is_continued(self, checkpoint: Make) -> None:
        model = checkpoint("llama")
        secateur.prune(
            model, out=model.parent / "out", ratio=0.3, method="flap", allocation="global", calibration=str(text_beside(model)),
            evaluation="none", samples=4, seq_len=16,
        )  # fmt: skip
        assert json.loads((model.parent / "out/secateur.json").read_text())["stock"] is False
        loaded = secateur.load(model.parent / "out")
        tokenizer = AutoTokenizer.from_pretrained(model)
        ids = torch.tensor([tokenizer("a word ")["input_ids"]])
        out = loaded.generate(ids, max_new_tokens=6, do_sample=False)[0]
        text = tokenizer.decode(out, skip_special_tokens=True)
        start = tokenizer.decode(ids[0], skip_special_tokens=True)
        for given in ({}, {"dynamic": 0}):
            assert start + generated(model.parent / "out", "a word ", max_new_tokens=6, **given)[0]["text"] == text
        message = problem("generate", str(model.parent / "out"), "--prompt", "a", dynamic=0.3, calibration=text_beside(model),
                          samples=2, seq_len=16)  # fmt: skip
        assert "unequal layers cannot be probed" in message


class TestEval:
    def test_at_ratio_0_it_is_the_same_perplexity(self) -> None:
        options = {"text": EVALUATION, "max_tokens": 3000, "seq_len": 64, "dtype": "fp32"}
        whole = result("eval", str(default_model()), **options)
        found = result("eval", str(default_model()), dynamic=0, batch=7, **options)
        assert found["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
        assert found["stderr"] == pytest.approx(whole["stderr"], rel=1e-4)
        assert {name: found[name] for name in ("tokens", "predicted", "protocol", "text")} == {
            name: whole[name] for name in ("tokens", "predicted", "protocol", "text")
        }
        assert whole.keys() < found.keys()

    @pytest.mark.parametrize("paper", [False, True])
    def test_it_is_the_perplexity_of_the_batches(self, dense: tuple[Any, Any], paper: bool) -> None:
        tokenizer = dense[1]
        model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
        probed = secateur.probe(model, 0.3, how=ProbePruning.paper() if paper else None).calibrate(blocks(tokenizer, seed=3))
        ids = windows(tokenise(read_text(EVALUATION, role="evaluation"), tokenizer), seq_len=64, max_tokens=1280).ids
        with torch.no_grad():
            losses = [float(probed(part, labels=part).loss) * len(part) for part in ids.split(8)]
        found = result(
            "eval", str(default_model()), text=EVALUATION, max_tokens=1280, dynamic=0.3, batch=8, dtype="fp32", seed=3,
            **({"paper": True} if paper else {}), **DRAWN,
        )  # fmt: skip
        assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(ids)), rel=1e-5)
        assert (found["ratio"], found["batch"], found["online"], found["tokens"]) == (0.3, 8, paper, 1280)
        assert found["overlap"]["in_calibration_text_ratio"] < 0.05

    def test_griffin_evaluates_each_batch_by_its_own_choice(self, dense: tuple[Any, Any]) -> None:
        model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
        probed = secateur.probe(model, 0.3, how=ProbePruning.griffin())
        ids = windows(tokenise(read_text(EVALUATION, role="evaluation"), dense[1]), seq_len=64, max_tokens=1280).ids
        with torch.no_grad():
            losses = [float(probed(part, labels=part, use_cache=False).loss) * len(part) for part in ids.split(8)]
        options: dict[str, Any] = {"text": EVALUATION, "max_tokens": 1280, "seq_len": 64, "dtype": "fp32"}
        found = result("eval", str(default_model()), dynamic=0.3, griffin=True, batch=8, **options)
        assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(ids)), rel=1e-5)
        assert found["perplexity"] != pytest.approx(result("eval", str(default_model()), **options)["perplexity"], rel=1e-3)
        assert found["calibration"] is None and found["overlap"] is None

    def test_a_saved_state_does_for_a_calibration(self, tmp_path: Path) -> None:
        state = tmp_path / "state.safetensors"
        generated(default_model(), "a", dynamic=0.3, max_new_tokens=1, save_state=state, **DRAWN)
        options = {"text": EVALUATION, "max_tokens": 1280, "seq_len": 64, "dynamic": 0.3}
        drawn = secateur.evaluate(default_model(), **options, calibration=CALIBRATION, samples=8)
        loaded = secateur.evaluate(default_model(), **options, state=state)
        assert loaded.perplexity == drawn.perplexity
        assert loaded.to_json()["overlap"] is None and "state.safetensors" in loaded.to_json()["calibration"]

    def test_a_text_that_it_is_calibrated_on_is_refused_unless_told(self, checkpoint: Make) -> None:
        model = checkpoint("llama")
        options: dict[str, Any] = {"dynamic": 0.3, "samples": 4, "seq_len": 16, "text": str(text_beside(model))}
        options["calibration"] = options["text"]
        message = refused_eval(model, **options)
        assert "overlaps with the calibration text" in message and "give --text a text" in message
        found = secateur.evaluate(model, **options, allow_overlap=True)
        assert found.to_json()["overlap"]["in_calibration_text_ratio"] == 1
        del options["text"]  # the last fifth, which is not calibrated on
        assert secateur.evaluate(model, **options).to_json()["overlap"]["in_calibration_text_ratio"] == 0


WRONG: list[tuple[list[str], dict[str, Any], list[str]]] = [
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 1.2}, ["dynamic = 1.2", "from 0 and below 1"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.99, "calibration": "TEXT"}, ["0.99", "Prune less"]),
    (["generate", "MODEL", "--prompt", ""], {}, ["prompt = ''", "not empty"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "state": "nowhere"}, ["there is no file nowhere"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "state": "TEXT"}, ["not a safetensors file"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "state": "s", "calibration": "TEXT"}, ["calibrated already"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "calibration": "nowhere.txt"}, ["neither a preset nor a file"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "save_state": "no/where"}, ["no directory no", "Make it"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0, "save_state": "s"}, ["nothing leaves", "no state"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "paper": True}, ["keep_first=3", "2 layers"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "rechoose": 0}, ["rechoose = 0", "1 or more"]),
    (["generate", "nowhere/at/all", "--prompt", "a"], {}, ["there is no directory 'nowhere/at/all'"]),
    (["generate", "MODEL", "--prompt", "a"], {"griffin": True}, ["griffin = True has no effect without `dynamic`"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "griffin": True, "state": "s"}, ["state = 's'", "batch alone"]),
    (["generate", "MODEL", "--prompt", "a"], {"dynamic": 0.3, "griffin": True, "save_state": "s"}, ["save_state = 's'"]),
    (["eval", "MODEL"], {"dynamic": 0.3, "griffin": True, "calibration": "TEXT"}, ["calibration =", "batch alone"]),
    (["eval", "MODEL"], {"dynamic": 0.3, "griffin": True, "paper": True}, ["paper = True", "one of them"]),
    (["bench", "MODEL"], {"dynamic": 0.3, "griffin": True, "attention": "kv"}, ["attention = 'kv'", "one of them"]),
    (["eval", "MODEL"], {"dynamic": -0.1}, ["dynamic = -0.1", "from 0 and below 1"]),
    (["eval", "MODEL"], {"dynamic": 0.3, "max_memory": "1GiB"}, ["max_memory = '1GiB'", "memory = 'low'"]),
    (["eval", "MODEL"], {"batch": 3}, ["batch = 3 has no effect without `dynamic`"]),
    (["bench", "MODEL", "MODEL"], {"batch": "1,x"}, ["batch = 'x'", "such as 1,4,20"]),
    (["bench", "MODEL", "MODEL"], {"seq_len": "0"}, ["seq_len = 0", "1 or more"]),
    (["bench", "MODEL", "nowhere/at/all"], {}, ["there is no directory 'nowhere/at/all'"]),
]


@pytest.mark.parametrize(("words", "options", "says"), WRONG, ids=lambda value: str(value)[:50])
def test_what_cannot_be_is_refused(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, words: list[str], options: dict[str, Any], says: list[str]
) -> None:
    model = checkpoint("llama")
    monkeypatch.chdir(model.parent)
    given = {name: str(text_beside(model)) if value == "TEXT" else value for name, value in options.items()}
    message = problem(*(str(model) if word == "MODEL" else word for word in words), **given)
    assert all(part in message for part in says), message
    assert message.endswith(".")
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "text.txt"]


def test_an_unknown_attention_is_refused_by_the_command_line_and_the_settings(checkpoint: Make) -> None:
    model = checkpoint("llama")
    done = command("generate", str(model), "--prompt", "a", dynamic=0.3, attention="haeds")
    assert done.exit_code == 2 and "haeds" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(secateur.UserError, match="attention = 'haeds' is not allowed. Did you mean heads"):
        secateur.evaluate(model, dynamic=0.3, attention="haeds")  # type: ignore[arg-type]


def test_a_state_of_another_model_or_method_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("llama", num_hidden_layers=5)
    text, state = {"calibration": text_beside(model), "samples": 2, "seq_len": 16}, tmp_path / "s"
    generated(model, "a", dynamic=0.3, max_new_tokens=1, save_state=state, **text)
    words = ("--prompt", "import")
    assert "was made without --paper" in problem("generate", str(model), *words, dynamic=0.3, paper=True, state=state)
    message = problem("generate", str(default_model()), *words, dynamic=0.3, state=state)
    assert "not of this model and method" in message and "256 channels are read there" in message


def test_positions_end_somewhere(checkpoint: Make) -> None:
    model = checkpoint("gpt2")
    message = problem("generate", str(model), "--prompt", "a word", max_new_tokens=30)
    assert "32 positions" in message and "fewer new tokens" in message
    message = problem("bench", str(model), str(model), seq_len="16,30", new_tokens=4)
    assert "need 34 positions" in message
