"""`secateur bench`: what is timed, counted and said of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.recipes.demo import default_model
from secateur.runtime.model import Probed
from tests.recipes.refusal import job, result
from tests.recipes.tiny_checkpoint import text_beside, tiny_text

Make = Callable[..., Path]


def flops(batch: int, length: int, steps: int) -> int:
    """Of the embedded model: 8 layers, 256 wide, 640 channels, 8 heads of 32 on 4, 4,096 tokens."""
    matrices = 8 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 640) + 256 * 4096
    if not steps:
        return batch * length * 2 * (matrices + 8 * 8 * 2 * 32 * length)
    return sum(batch * 2 * (matrices + 8 * 8 * 2 * 32 * (length + step + 1)) for step in range(steps))


class TestBench:
    def test_a_model_alone_and_three_of_them(self, checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        model = checkpoint("llama")
        options: dict[str, Any] = {"batch": "1", "seq_len": "4", "new_tokens": 0, "runs": 2}
        monkeypatch.setattr("secateur.recipes.bench.measure_peak", lambda *_: "")
        alone = result("bench", str(model), **options)
        assert [c["model"] for c in alone["cells"]] == ["model"] and "speedup" not in alone["cells"][0]
        assert alone["not_faster"] == alone["advice"] == []
        (model.parent / "other").symlink_to(model)
        found = result("bench", str(model), str(model) + "/", str(model.parent / "other"), **options)
        assert [row["model"] for row in found["models"]] == ["model", "model #2", "other"]
        assert ["speedup" in c for c in found["cells"]] == [False, True, True]

    def test_what_rounding_would_do_is_said_of_the_worst_cell(self, checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        model = checkpoint("llama", intermediate_size=160)
        out = model.parent / "small"
        secateur.prune(model, **job(model, out=out, axes="ffn", ratio=0.2, evaluation="none"))
        whole = AutoModelForCausalLM.from_pretrained(model).num_parameters()

        def pretend(one: Any, ids: torch.Tensor, _: int) -> tuple[float, float]:
            """The whole model takes a second; a smaller one two and one whose widths are multiples of 32 half."""
            widths = {layer.mlp.down_proj.in_features for layer in one.model.layers}
            odd = any(width % 32 for width in widths)
            return (1.0 if one.num_parameters() == whole else 1.0 + ids.shape[1] if odd else 0.5), 0.0

        monkeypatch.setattr("secateur.evaluation.speed.time_once", pretend)
        monkeypatch.setattr("secateur.recipes.bench.measure_peak", lambda *_: "")
        found = result("bench", str(model), str(out), batch="1", seq_len="4,8", new_tokens=0, runs=3)
        assert [line.partition(":")[0] for line in found["not_faster"]] == [
            f"small is not faster in prefill at batch 1 x {n}" for n in (4, 8)
        ]
        (advice,) = found["advice"]
        assert advice.startswith("small, prefill at batch 1 x 8: --round-to 32 would make it so: 2.00 times as fast")

    def test_a_model_against_itself_is_about_as_fast_in_every_cell(self) -> None:
        model = str(default_model())
        found = result("bench", model, model, dynamic=0, batch="1,2", seq_len="16,48", new_tokens=3, runs=5)
        cells = {(c["batch"], c["seq_len"], c["phase"], c["model"]): c for c in found["cells"]}
        assert len(cells) == len(found["cells"])
        assert set(cells) == {
            (batch, length, phase, name)
            for batch in (1, 2) for length in (16, 48) for phase in ("prefill", "decode")
            for name in ("model", "default_model", "dynamic")
        }  # fmt: skip
        for (batch, length, phase, name), cell in cells.items():
            assert (
                0 < cell["seconds_least"] <= cell["seconds"] <= cell["seconds_most"]
                and 5 <= cell["runs"] == len(cell["each"]) <= 200
            )
            tokens = batch * (length if phase == "prefill" else 3)
            assert cell["tokens_per_second"] == pytest.approx(tokens / cell["seconds"])
            assert cell["flops"] == flops(batch, length, 0 if phase == "prefill" else 3)
            assert cell["flops_per_second"] == pytest.approx(cell["flops"] / cell["seconds"])
            assert ("speedup" in cell) == (name != "model")
            if name != "model":
                assert 1 / 3 < cell["speedup"] < 3
                assert (
                    cell["speedup_least"]
                    <= cell["speedup_low"]
                    <= cell["speedup"]
                    <= cell["speedup_high"]
                    <= cell["speedup_most"]
                )
        assert [m["parameters"] for m in found["models"]] == [6_557_952] * 3
        assert all(50 * 2**20 < m["peak_memory_bytes"] < 4 * 2**30 for m in found["models"])
        assert "at batch 2 x 48, decoding included" in found["peak_memory"]
        assert found["calibration"] is None and "threads" in found["hardware"] and "torch" in found["versions"]

    def test_a_smaller_model_that_is_not_faster_is_named(self, checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("secateur.recipes.bench.measure_peak", lambda *_: "")
        slow = {Probed: (0.02, 0.0)}
        monkeypatch.setattr("secateur.evaluation.speed.time_once", lambda model, *_: slow.get(type(model), (0.01, 0.0)))
        model = checkpoint("llama")
        options: dict[str, Any] = {"batch": "1", "seq_len": "4", "new_tokens": 0, "runs": 1}
        found = result("bench", str(model), dynamic=0.4, samples=2, **options)
        assert found["not_faster"] == [
            "dynamic is not faster in prefill at batch 1 x 4: 0.50 times as fast (0.50 to 0.50)"
        ]  # fmt: skip
        assert "random token ids" in found["calibration"] and "nothing of quality" in found["calibration"]
        assert [c["phase"] for c in found["cells"]] == ["prefill"] * 2
        assert result("bench", str(model), str(model), **options)["not_faster"] == []  # it is no smaller
        slow[Probed] = (0.005, 0.0)
        assert result("bench", str(model), dynamic=0.4, samples=2, **options)["not_faster"] == []

    def test_calibrated_on_a_text_and_as_published(self, checkpoint: Make) -> None:
        model = checkpoint("llama", num_hidden_layers=5)
        (text_beside(model)).write_text(tiny_text(200))
        found = result(
            "bench", str(model), dynamic=0.3, paper=True, calibration=text_beside(model), samples=2, batch="2", seq_len="8",
            new_tokens=2, runs=2,
        )  # fmt: skip
        assert found["calibration"].startswith("2 of ") and "text.txt" in found["calibration"]
        assert found["models"][1]["peak_memory_bytes"] > 0

    def test_griffin_is_timed_without_a_calibration(self, checkpoint: Make) -> None:
        found = result(
            "bench", str(checkpoint("llama")), dynamic=0.3, griffin=True, batch="2", seq_len="8", new_tokens=2, runs=1
        )
        assert found["calibration"] is None and found["models"][1]["peak_memory_bytes"] > 0
        assert {c["phase"] for c in found["cells"]} == {"prefill", "decode"}
