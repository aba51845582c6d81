"""The study of gradient estimators: what its table says, and that it goes on where it was cut off."""

import json
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur.recipes import study as module
from secateur.recipes.study import cosine, spearman
from secateur.reporting.study import study_table
from tests.recipes.tiny_checkpoint import text_beside, tiny_checkpoint


def asked(base: Path, *more: str) -> list[str]:
    text = str(text_beside(base / "model"))
    options = ["--calibration", text, "--samples", "4", "--seq-len", "16", "--seeds", "0,1", "--ratios", "0.3"]
    return ["study", "gradients", str(base / "model"), "--out", str(base / "study"), *options, *more]


def test_the_exact_gradient_correlates_with_itself_and_a_second_call_runs_nothing(tmp_path: Path, monkeypatch):
    tiny_checkpoint("llama", tmp_path)
    flags = ["--estimators", "backprop constant spsa-gates:n=2", "--dtype", "fp32", "--json"]
    done = CliRunner().invoke(app, asked(tmp_path, *flags))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "study/results.json").read_text())
    rows = {(r["gradient"], r["seed"]): r for r in found["rows"] if r["gradient"]}
    assert len(rows) == 6
    for seed in (0, 1):
        assert rows["backprop", seed]["spearman"] == {"kv": pytest.approx(1), "ffn": pytest.approx(1)}
        assert rows["backprop", seed]["cosine"] == pytest.approx(1)
        assert abs(rows["constant", seed]["spearman"]["ffn"]) < 0.9
        assert rows["spsa-gates:n=2", seed]["backward_passes"] == 0
        assert rows["spsa-gates:n=2", seed]["forward_passes"] >= 4
        assert rows["backprop", seed]["perplexity"]["0.3"].keys() == {"none", "least-squares"}
        assert rows["backprop", seed]["peak_memory_bytes"] > 1e8
        assert rows["backprop", seed]["seconds"] > 0
    assert {r["method"] for r in found["rows"] if r["gradient"] is None} == {"random", "magnitude", "wanda-sp"}
    monkeypatch.setattr(module, "run_arm", None)
    monkeypatch.setattr(module, "ProcessPoolExecutor", None)
    again = CliRunner().invoke(app, asked(tmp_path, *flags))
    assert json.loads(again.stdout) == found
    table = (tmp_path / "study/table.md").read_text()
    assert table == study_table(found)
    assert "| fms | backprop | 1.000 | 1.000 | 1.000 | " in table


def test_what_an_arm_would_refuse_is_refused_first(tmp_path: Path):
    tiny_checkpoint("llama", tmp_path)
    for more, told in (
        (["--estimators", "backprop spsa-gate"], "Did you mean spsa-gates"),
        (["--estimators", "backprop backprop"], "given twice"),
        (["--estimators", "backprop spsa-gates:n=0"], "n=0 was given"),
        (["--ratios", "0.3,1.5"], "1.5"),
        (["--ratios", "0.99"], "parameters must leave"),
        (["--seeds", "0,0"], "given twice"),
        (["--eval", "none"], "measures perplexity"),
        (["--eval", str(text_beside(tmp_path / "model"))], "overlaps with the calibration text"),
    ):
        done = CliRunner().invoke(app, asked(tmp_path, *more))
        assert done.exit_code == 2, more
        assert told in done.stderr
    assert not (tmp_path / "study/results.json").exists()
    shutil.rmtree(tmp_path / "study")
    (tmp_path / "study").write_text("a file")
    done = CliRunner().invoke(app, asked(tmp_path))
    assert done.exit_code == 2
    assert "cannot be made" in done.stderr


def test_a_study_of_another_model_in_the_same_place_begins_anew(tmp_path: Path, monkeypatch):
    model = tiny_checkpoint("llama", tmp_path)
    flags = ["--estimators", "constant", "--dtype", "fp32", "--json"]
    monkeypatch.setattr(module, "CONTROLS", ())
    first = json.loads(CliRunner().invoke(app, asked(tmp_path, *flags)).stdout)
    shutil.rmtree(model)
    tiny_checkpoint("llama", tmp_path, seed=1)
    assert (
        json.loads(CliRunner().invoke(app, asked(tmp_path, *flags)).stdout)["perplexity_before"] != first["perplexity_before"]
    )


def test_a_process_that_is_killed_is_told(tmp_path: Path, monkeypatch):
    tiny_checkpoint("llama", tmp_path)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Killed)
    done = CliRunner().invoke(app, asked(tmp_path, "--estimators", "constant"))
    assert done.exit_code == 2
    assert "process of constant with seed 0 was killed" in done.stderr


class Killed:
    """A process pool whose process does not live to answer."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> "Killed":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, *_: object) -> "Killed":
        raise BrokenProcessPool


def test_rank_correlation_and_cosine():
    x = torch.tensor([1.0, 4.0, 2.0, 8.0], dtype=torch.float64)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.tensor([1.0, 2.0, 4.0, 8.0])) == pytest.approx(0.8)
    assert spearman(torch.tensor([0.0, 0, 0, 0, 1]), torch.tensor([4.0, 3, 2, 1, 5])) == pytest.approx(0.5**0.5)
    assert spearman(x, torch.zeros(4)) is None
    assert spearman(x[:1], x[:1]) is None
    assert cosine(x, 3 * x) == pytest.approx(1)
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 0
