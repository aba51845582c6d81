"""The study of gradient estimators: what its table says, and that it goes on where it was cut off."""

import json
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
    options = ["--calibration", text, "--eval", text, "--samples", "4", "--seq-len", "16", "--seeds", "0,1", "--ratios", "0.3"]
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
    assert {r["method"] for r in found["rows"] if r["gradient"] is None} == {"random", "magnitude", "wanda-sp"}
    monkeypatch.setattr(module, "run_arm", None)
    monkeypatch.setattr(module, "ProcessPoolExecutor", None)
    again = CliRunner().invoke(app, asked(tmp_path, *flags))
    assert json.loads(again.stdout) == found
    table = (tmp_path / "study/table.md").read_text()
    assert table == study_table(found)
    assert "| fms | backprop | 1.000 | 1.000 | 1.000 | " in table


def test_an_unknown_estimator_is_refused(tmp_path: Path):
    tiny_checkpoint("llama", tmp_path)
    done = CliRunner().invoke(app, asked(tmp_path, "--estimators", "backprop spsa-gate"))
    assert done.exit_code == 2
    assert "Did you mean spsa-gates" in done.stderr
    assert CliRunner().invoke(app, asked(tmp_path, "--ratios", "0.3,1.5")).exit_code == 2


def test_rank_correlation_and_cosine():
    x = torch.tensor([1.0, 4.0, 2.0, 8.0], dtype=torch.float64)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.tensor([1.0, 2.0, 4.0, 8.0])) == pytest.approx(0.8)
    assert spearman(x, torch.zeros(4)) != spearman(x, torch.zeros(4))  # not a number
    assert cosine(x, 3 * x) == pytest.approx(1)
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 0
