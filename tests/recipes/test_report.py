"""Every command leaves its record, and the report of them says what they said."""

import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.recipes.demo import default_model
from secateur.recipes.demo import demo as run_demo
from secateur.records import Record, identity, read_runs
from secateur.reporter import Quiet
from secateur.reporting.words import plus_minus
from tests.recipes.browser import seen
from tests.recipes.tiny_checkpoint import text_beside

Make = Callable[..., Path]
PRUNED = {"--ratio": "0.3", "--method": "flap", "--samples": "8", "--seq-len": "16"}


def run(*words: object, **flags: object) -> tuple[dict[str, Any], list[Path]]:
    """A command's answer, and the records that it names."""
    given = [str(word) for word in words] + [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    done = CliRunner().invoke(app, [*given, "--json"], prog_name="secateur")
    assert done.exit_code == 0, (done.exception, done.stderr)
    return json.loads(done.stdout), [Path(path) for path in re.findall(r"^record: (.*)$", done.stderr, re.MULTILINE)]


def prune(model: Path, out: Path, **flags: object) -> tuple[dict[str, Any], Record]:
    words = [word for pair in PRUNED.items() for word in pair]
    found, (path,) = run("prune", model, "--out", out, "--calibration", text_beside(model), *words, **flags)
    (record,) = read_runs([path])
    return found, record


def test_a_pruning_leaves_what_it_decided(checkpoint: Make, tmp_path: Path) -> None:
    model, out = checkpoint("llama"), tmp_path / "smaller"
    found, record = prune(model, out, allocation="global")
    assert (record.verb, record.models["before"].identity, record.models["after"].identity) == (
        "prune",
        identity(model),
        identity(out),
    )
    assert str(tmp_path) not in json.dumps(record.to_json()), "no directory of the machine"
    assert record.result["perplexity_after"] == found["perplexity_after"]
    plan = json.loads((out / "secateur.json").read_text())["plan"]
    sizes, figures = plan["sizes"], record.figures
    assert figures["layers"] == [
        {axis: len(kept.get(axis, range(sizes[axis]))) for axis in ("kv", "ffn")} for kept in plan["layers"]
    ]
    left = sum(row["parameters"] for row in figures["costs"])
    assert left == found["parameters_before"] - found["parameters_after"]
    assert left == pytest.approx(found["ratio_reached"] * figures["layer_parameters"] * len(plan["layers"]))
    for axis, scores in figures["scores"].items():
        for layer, counted in enumerate(scores["layers"]):
            assert sum(counted["kept"]) == figures["layers"][layer][axis], "the histogram counts every unit"
            assert sum(counted["kept"]) + sum(counted["left"]) == sizes[axis]
            last = max((n for n, count in enumerate(counted["left"]) if count), default=0)
            assert all(count == 0 for count in counted["kept"][:0]) and last < len(counted["kept"])
    assert [read.to_json() for read in read_runs([out])] == [record.to_json()], "the model brings it along"


def test_the_errors_are_those_of_the_windows(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("llama")
    found, record = prune(model, tmp_path / "smaller")
    run_path = Path(found["run_dir"])
    remembered = json.loads((run_path / "results.json").read_text())
    (windows,) = [body["windows"] for key, body in remembered.items() if key.startswith("losses of")]
    mean = math.fsum(windows) / len(windows)
    spread = math.sqrt(sum((w - mean) ** 2 for w in windows) / (len(windows) - 1) / len(windows))
    assert found["perplexity_before"] == pytest.approx(math.exp(mean), rel=1e-12)
    assert found["perplexity_stderr_before"] == pytest.approx(math.exp(mean) * spread, rel=1e-12)
    assert math.log(found["perplexity_after"] / found["perplexity_before"]) == pytest.approx(found["loss_rise"], abs=1e-12)
    apart = math.hypot(found["perplexity_stderr_before"] / found["perplexity_before"], spread)
    assert 0 < found["loss_rise_stderr"] < apart, "windows in pairs say more than each alone"
    again, second = prune(model, tmp_path / "again")
    assert [again[k] for k in ("perplexity_stderr_before", "loss_rise_stderr")] == [
        found[k] for k in ("perplexity_stderr_before", "loss_rise_stderr")
    ], "what was kept in the run directory is what was measured"
    card = (tmp_path / "smaller" / "README.md").read_text()
    for stderr, value in (("perplexity_stderr_before", "perplexity_before"), ("perplexity_stderr_after", "perplexity_after")):
        assert f"{found[value]:.3f} ± {found[stderr]:.3f}" in card
    assert re.search(
        r"\| layers \| kv heads \| MLP channels \|\n\|---\|---\|---\|\n\| 0 to 1 \| \d+ of \d+ \| \d+ of \d+ \|", card
    )
    assert second.models["after"].identity == record.models["after"].identity


def test_a_group_axis_and_whole_layers(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("llama", num_hidden_layers=4)
    _, grouped = prune(model, tmp_path / "grouped", axes="group,ffn", eval="none")
    assert set(grouped.figures["axes"]) == {"group", "ffn"}
    counted = grouped.figures["scores"]["group"]["layers"][0]
    assert sum(counted["kept"]) == grouped.figures["layers"][0]["group"]
    words = ["--ratio", "0.25", "--method", "shortgpt", "--samples", "8", "--seq-len", "16", "--eval", "none"]
    _, (path,) = run("prune", model, "--out", tmp_path / "shallow", "--calibration", text_beside(model), *words)
    (shallow,) = read_runs([path])
    assert shallow.figures["layers"].count(None) == 1 and len(shallow.figures["influence"]) == 4
    gone = shallow.figures["layers"].index(None)
    assert shallow.figures["influence"][gone] == min(shallow.figures["influence"])
    answer, _ = run("report", tmp_path / "grouped", tmp_path / "shallow")
    assert "left whole" in Path(answer["report"]).read_text()


def test_the_others_leave_theirs_where_they_ran(checkpoint: Make, tmp_path: Path, elsewhere: Path) -> None:
    model, out = checkpoint("llama"), tmp_path / "smaller"
    prune(model, out, allocation="uniform")
    text = text_beside(model)
    scored, (eval_path,) = run("eval", out, text=text, seq_len=16)
    timed, (bench_path,) = run("bench", model, out, batch="1", seq_len="8,16", new_tokens=2, runs=2)
    _, (generate_path,) = run("generate", out, "--prompt", "abc def", max_new_tokens=4)
    assert {path.parent.parent for path in (eval_path, bench_path, generate_path)} == {Path(".secateur")}
    for path, verb in ((eval_path, "eval"), (bench_path, "bench"), (generate_path, "generate")):
        (record,) = read_runs([path])
        assert record.verb == verb and path.parent.name.startswith(f"{verb}-")
        assert str(tmp_path) not in json.dumps(record.to_json())
        assert "threads" in record.environment and "cpu" in record.environment
    again, (same,) = run("eval", out, text=text, seq_len=16)
    assert same == eval_path and len(list((elsewhere / ".secateur").iterdir())) == 3
    (bench,) = read_runs([bench_path])
    assert bench.command == "secateur bench model smaller --batch 1 --seq-len 8,16 --new-tokens 2 --runs 2"
    assert [m.identity for m in bench.models.values()] == [identity(model), identity(out)]
    answer, _ = run("report", out, ".secateur", out=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert answer == {"report": str(tmp_path / "r.html"), "bytes": len(page.encode()), "runs": 4}
    assert again["perplexity"] == scored["perplexity"] and html.escape(scored["protocol"]) in page
    assert f">{plus_minus(scored['perplexity'], scored['perplexity'] * scored['stderr'])}<" in page
    assert page.count("was not measured") == 0, "the measurements are those of this model"
    assert f"{timed['cells'][1]['speedup']:.2f}×" in page


def test_a_comparison_is_a_run_directory(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("llama")
    _, (path,) = run("compare", model, "--methods", "flap random", "--out", tmp_path / "cmp", ratios="0.2,0.4", seeds="0", samples=8,
                     seq_len=16, calibration=text_beside(model))  # fmt: skip
    assert path.parent == tmp_path / "cmp"
    run("report", tmp_path / "cmp", tmp_path / "cmp" / "runs", out=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Methods on model" in page and "4 models" in page, "each cell is a pruning with a record of its own"


def test_a_record_that_cannot_be_written_costs_a_warning(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("llama")
    (tmp_path / "file").write_text("")
    flags = ["--text", str(text_beside(model)), "--seq-len", "16", "--run-dir", str(tmp_path / "file")]
    done = CliRunner().invoke(app, ["eval", str(model), *flags], prog_name="secateur")
    assert done.exit_code == 0 and "perplexity" in done.stdout
    assert "warning: the record of this run could not be written to" in done.stderr and "record: " not in done.stderr


def test_a_report_replaces_reports_alone(checkpoint: Make, tmp_path: Path) -> None:
    _, record = prune(checkpoint("llama"), tmp_path / "smaller", eval="none")
    for _ in range(2):
        run("report", tmp_path / "smaller", out=tmp_path / "r.html")
    (tmp_path / "other.html").write_text("<p>mine")
    for given, words, said in (
        (tmp_path / "other.html", [], "exists and is no report"),
        (tmp_path, [], "is a directory"),
        (tmp_path / "smaller" / "config.json", ["--force"], "does not end in .html"),
    ):
        done = CliRunner().invoke(app, ["report", *words, str(tmp_path / "smaller"), "--out", str(given)], prog_name="secateur")
        assert done.exit_code == 2 and said in done.stderr
    (tmp_path / "mine.html").write_text("mine")
    run("report", "--force", tmp_path / "smaller", out=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == (tmp_path / "r.html").read_text()
    assert record.figures["scores"]


def test_an_export_is_told_of_its_model(checkpoint: Make, tmp_path: Path, elsewhere: Path) -> None:
    model, out = checkpoint("llama"), tmp_path / "smaller"
    prune(model, out, allocation="uniform", eval="none")
    found, (path,) = run("export", out, "--no-tokenizer", "--no-check", to="gguf", dtype="f32")
    (record,) = read_runs([path])
    assert record.command == "secateur export smaller --to gguf --dtype f32 --no-tokenizer --no-check"
    assert record.models["model"].identity == identity(out) and str(tmp_path) not in json.dumps(record.to_json())
    run("report", out, path.parent, out=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Files for other programs" in page and found["dtype"] == "f32"
    for told in (">smaller-f32.gguf<", ">llama<", ">not run<"):
        assert told in page


def test_a_damaged_record_among_others_is_left_out(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("llama")
    _, (path,) = run("eval", model, text=text_beside(model), seq_len=16, run_dir=tmp_path / "runs")
    body = json.loads(path.read_text())
    for name, text in {"cut": path.read_text()[:99], "wrong": json.dumps({**body, "result": {"perplexity": "x"}})}.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "record.json").write_text(text)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "r.html"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["runs"] == 1
    assert re.search(r"warning: left out: .*cut/record.json' is not JSON", done.stderr)
    assert re.search(r"warning: left out: .*wrong/record.json is damaged: `result.perplexity` is 'x'", done.stderr)
    for named in ("cut", "wrong"):
        done = CliRunner().invoke(app, ["report", str(tmp_path / "runs" / named), "--out", str(tmp_path / "r.html")])
        assert done.exit_code == 2 and "error: " in done.stderr


def test_the_library_says_nothing_and_writes_beside_the_output_alone(checkpoint: Make, tmp_path: Path, elsewhere: Path) -> None:
    model = checkpoint("llama")
    text = str(text_beside(model))
    result = secateur.prune(
        model, out=tmp_path / "smaller", ratio=0.3, method="flap", samples=8, seq_len=16, calibration=text
    )  # fmt: skip
    secateur.evaluate(tmp_path / "smaller", text=text, seq_len=16)
    assert list(elsewhere.iterdir()) == []
    assert [r.verb for r in read_runs([Path(result.run_dir).parent])] == ["prune"]


@pytest.mark.slow
def test_the_report_of_a_demonstration(tmp_path: Path, elsewhere: Path) -> None:
    found = run_demo(Quiet())
    page = (elsewhere / found.report).read_text()
    assert len(page.encode()) < 2_000_000
    assert f"{found.speed:.2f}×" in page and "Speed was not measured" not in page
    (record,) = [r for r in read_runs([elsewhere / "secateur-demo" / ".secateur"]) if r.verb == "demo"]
    assert record.models["model"].identity == identity(default_model())
    for width in (390, 1280):
        look = seen(page, tmp_path, width=width, scheme="light")
        assert look["wide"] <= width and look["loaded"] == [] and len(look["plots"]) == page.count("<svg") >= 5
        assert (look["escaped"], look["touching"], look["outside"]) == ([], [], [])
