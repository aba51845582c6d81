"""The comparison of methods: what it writes, that it goes on where it was killed, and what stops it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.recipes import compare as module
from secateur.reporting.compare import compare_table
from secateur.reporting.plot import compare_plot
from secateur.runs import RunDirectory
from tests.recipes.refusal import command, job
from tests.recipes.test_interrupted import kill
from tests.recipes.tiny_checkpoint import text_beside, tiny_checkpoint

Make = Callable[..., Path]
METHODS = "magnitude[compensate=none] flap[compensate=bias,allocation=global] flap"


def asked(model: Path, **options: Any) -> dict[str, Any]:
    usual = {
        "methods": METHODS, "out": model.parent / "compared", "ratios": "0.2,0.4", "seeds": "0,1", "samples": 4, "seq_len": 16,
        "calibration": text_beside(model), "dtype": "fp32",
    }  # fmt: skip
    return usual | options


def compare(model: Path, **options: Any) -> dict[str, Any]:
    done = command("compare", str(model), json_wanted=True, **asked(model, **options))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def model(checkpoint: Make) -> Path:
    return checkpoint("llama")


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None, int]]:
    """The prunings that were started."""
    real, calls = module.prune, []

    def prune(settings: Any, *rest: Any) -> Any:
        calls.append((settings.method, settings.ratio, settings.seed))
        return real(settings, *rest)

    monkeypatch.setattr(module, "prune", prune)
    return calls


def test_everything_is_written_and_a_second_call_runs_nothing(model: Path, pruned: list[Any]) -> None:
    found, out = compare(model), model.parent / "compared"
    assert len(pruned) == len(found["cells"]) == 12
    written = {name: (out / name).read_text() for name in ("results.json", "table.md", "plot.svg")}
    assert json.loads(written["results.json"]) == found
    assert written["table.md"] == compare_table(found)
    assert written["plot.svg"] == compare_plot(found)
    for method in METHODS.split():
        assert method in written["plot.svg"] and f"| `{method}` |" in written["table.md"]
    for name in ("torch", "transformers", "secateur", "cpu", "threads", "device"):
        assert found["environments"][0][name]
    assert found["command"].startswith("secateur compare model --out compared --ratios 0.2,0.4 --seeds 0,1 ")
    assert f"--methods '{METHODS}'" in found["command"]
    assert "drawn with seed 1" in found["calibration"]["1"] and "held-out last fifth" in found["evaluation"]
    assert found["overlap"]["0"]["in_calibration_text_ratio"] == 0
    assert str(model.parent) not in json.dumps(found)
    assert len(list((out / "runs").glob("*/identity.json"))) == 2, "methods share their statistics"
    assert not list(out.glob("**/pruned*")) and not list(out.glob("**/scratch")), "no model stays"
    pruned.clear()
    assert compare(model) == found
    assert pruned == []
    assert len(compare(model, methods=f"{METHODS} random", ratios="0.2")["cells"]) == 8
    assert pruned == [("random", 0.2, 0), ("random", 0.2, 1)], "what is new is run, and nothing else"


def test_a_cell_is_what_prune_finds(model: Path) -> None:
    found = compare(model, methods="flap[compensate=bias,allocation=global]", seeds="3", ratios="0.3")
    (cell,) = found["cells"]
    options = job(model, seed=3, compensate="bias", allocation="global", dtype="fp32") | {"evaluation": None}
    alone = secateur.prune(model, **options)
    assert (cell["perplexity"], cell["ratio_reached"]) == (alone.perplexity_after, alone.ratio_reached)
    assert (cell["compensate"], cell["allocation"], cell["parameters"]) == ("bias", "global", alone.parameters_after)
    assert found["perplexity_before"] == alone.perplexity_before


@pytest.mark.parametrize(
    ("place", "left"),  # two layers a cell, each checked as it is written and once more as it is loaded
    [("secateur.surgery.verify:Verifier.check:10:before", 4), ("secateur.runs:RunDirectory.remember:4:after", 3),
     ("secateur.streaming.collect:Store.save:1:after", 5)],
    ids=["within a cell", "after a cell", "in a walk"],
)  # fmt: skip
def test_a_killed_comparison_goes_on(model: Path, pruned: list[Any], place: str, left: int) -> None:
    kill(model, place, verb="compare", **asked(model, ratios="0.3"))
    assert not (model.parent / "compared/table.md").exists()
    found = compare(model, ratios="0.3")
    assert len(pruned) == left
    assert not list((model.parent / "compared").glob("**/scratch"))
    shutil.rmtree(model.parent / "compared")
    timeless = lambda cells: [{n: v for n, v in cell.items() if n not in ("seconds", "environment")} for cell in cells]  # noqa: E731
    assert timeless(compare(model, ratios="0.3")["cells"]) == timeless(found["cells"])


def test_a_cell_that_refuses_is_told_and_the_rest_goes_on(model: Path, pruned: list[Any]) -> None:
    found = compare(model, methods="magnitude flap[protect=0]", ratios="0.2,0.6", seeds="0")
    refused = {(c["entry"], c["ratio"]): c["refused"] for c in found["cells"] if c["refused"]}
    assert refused.keys() == {("flap[protect=0]", 0.6)}
    assert "parameters must leave" in refused["flap[protect=0]", 0.6]
    table = (model.parent / "compared/table.md").read_text()
    assert "## Refused\n\n- `flap[protect=0]` at 60%, seed 0: " in table
    assert re.search(r"\| `flap\[protect=0\]` \| \d+\.\d\d \| - \|", table)
    assert "flap[protect=0]" in (model.parent / "compared/plot.svg").read_text()
    pruned.clear()
    assert compare(model, methods="magnitude flap[protect=0]", ratios="0.2,0.6", seeds="0") == found
    assert pruned == [("flap", 0.6, 0)], "a refused one is tried again"


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, None),
        ({"ratios": "0.2,0.3"}, None),
        ({"methods": "flap"}, "has 1 cells that are not asked for now"),
        ({"ratios": "0.3"}, "has 2 cells that are not asked for now"),
        ({"model": "other"}, "is of another model"),
    ],
    ids=["the same", "more", "fewer methods", "another ratio", "another model"],
)
def test_files_that_lose_cells_are_not_rewritten_unsaid(model: Path, options: dict[str, Any], warned: str | None) -> None:
    first = {"methods": "magnitude flap", "ratios": "0.2", "seeds": "0"}
    before = compare(model, **first)
    if options.get("model"):
        found = tiny_checkpoint("llama", model.parent / "other", seed=1)
        done = command("compare", str(found), **asked(model, **first))
    else:
        done = command("compare", str(model), **asked(model, **(first | options)))
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert ("rewritten with this call's entries alone" in said) == (warned is not None)
    assert (warned or "") in said
    assert compare(model, **first)["cells"] == before["cells"], "they are remembered"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"methods": "flap flpa"}, "'flpa' of --methods cannot be run: unknown method 'flpa'. Did you mean flap?"),
        ({"methods": "flap flap[allocation=globl]"}, "'flap[allocation=globl]' of --methods cannot be run: unknown"),
        ({"methods": "flap[gradient=backprop]"}, "'flap[gradient=backprop]' of --methods cannot be run"),
        ({"methods": "fats"}, "unknown method 'fats'. Did you mean fast?"),
        ({"methods": "flpa"}, "; and the efforts fast, balanced, best."),
        ({"methods": "flap fast:metric=wifn"}, "fast is an effort, and an effort takes no options"),
        ({"methods": "flap flap"}, "given twice"),
        ({"methods": ""}, "methods = '' is not allowed: it must be methods separated by spaces"),
        ({"methods": "flap[compensate=bais]"}, "unknown compensation 'bais'. Did you mean bias?"),
        ({"ratios": "0.3,1.5"}, "1.5"),
        ({"evaluation": "none"}, "measures perplexity"),
        ({"samples": 100_000}, "too short"),
        ({"ratios": "0.999"}, "no method could be run at any of the ratios"),
    ],
)
def test_what_no_cell_could_do_with_is_refused_first(model: Path, options: dict[str, Any], told: str) -> None:
    done = command("compare", str(model), **asked(model, **options))
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((model.parent / "compared").glob("runs/*/layer-*"))


def test_a_text_that_was_calibrated_on_is_refused_unless_told(model: Path) -> None:
    options = {"evaluation": text_beside(model), "methods": "flap", "seeds": "0", "ratios": "0.2"}
    done = command("compare", str(model), **asked(model, **options))
    assert done.exit_code == 2 and "overlaps with the calibration text" in done.stderr
    found = compare(model, **options, allow_overlap=True)
    assert found["overlap"]["0"]["in_calibration_text_ratio"] == 1
    assert "100.00% occur in the calibration text" in (model.parent / "compared/table.md").read_text()


def test_without_matplotlib_the_rest_is_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.reporting.plot.find_spec", lambda _: None)
    done = command("compare", str(model), **asked(model, methods="magnitude", seeds="0", ratios="0.2"))
    assert done.exit_code == 0, done.output
    assert "no plot.svg" in done.stderr and "secateur[plot]" in done.stderr
    assert {path.name for path in (model.parent / "compared").iterdir() if path.is_file()} == {
        "results.json",
        "table.md",
        "record.json",
    }


def test_a_comparison_that_went_on_elsewhere_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"methods": "magnitude", "seeds": "0"}
    compare(model, **options, ratios="0.2")
    monkeypatch.setattr(module, "hardware", lambda _: {"cpu": "abacus", "threads": 10, "device": "abacus"})
    found = compare(model, **options, ratios="0.2,0.4")
    assert [cell["environment"] for cell in found["cells"]] == [0, 1]
    assert [place["cpu"] == "abacus" for place in found["environments"]] == [False, True]
    assert "- abacus, 10 threads, Secateur" in (model.parent / "compared/table.md").read_text()


def test_two_at_once_wait_for_each_other(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = []
    real = RunDirectory.alone
    monkeypatch.setattr(RunDirectory, "alone", lambda self, waiting: locked.append(self.path) or real(self, waiting))
    compare(model, methods="magnitude", seeds="0", ratios="0.2")
    assert locked[0].parent == model.parent / "compared/.secateur"
