"""`secateur eval --tasks`: the numbers that lm-eval's own loader gives, of every kind of model; and tasks that need no network."""

import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.calibration.blocks import draw_blocks
from secateur.calibration.text import read_text
from secateur.calibration.tokens import tokenise
from secateur.evaluation.tasks import rows_definition
from secateur.recipes.demo import default_model
from tests.recipes.task_files import CONTINUATIONS, files, one_index

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")

from secateur.evaluation import harness  # noqa: E402

__all__ = ["files", "one_index"]  # fixtures
CALIBRATION = str(difflib.__file__)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`pruned("stock")` and `pruned("unequal")`: the embedded model without 30% of its blocks."""
    place = tmp_path_factory.mktemp("pruned")
    how = {
        "stock": {"method": "wanda-sp", "allocation": "uniform", "format": "stock"},
        "unequal": {"method": "flap", "allocation": "global"},
    }
    for name, options in how.items():
        secateur.prune(
            default_model(), out=place / name, ratio=0.3, calibration=CALIBRATION, evaluation="none", samples=8, seq_len=64,
            dtype="fp32", **options,  # type: ignore[arg-type]
        )  # fmt: skip
    return lambda name: place / name


def by_lm_eval(directory: Path, files: list[str]) -> dict[str, Any]:
    definitions: Any = [rows_definition(Path(file), Path(file).stem) for file in files]
    found: Any = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(directory), "dtype": "float32"}, tasks=definitions, device="cpu",
        batch_size=3, bootstrap_iters=harness.RESAMPLES, log_samples=False,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )  # fmt: skip
    return found


def assert_equal(found: dict[str, Any], expected: dict[str, Any], *, within: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for task, metrics in expected.items():
        assert found[task].keys() == metrics.keys()
        for name, value in metrics.items():
            assert found[task][name] == (pytest.approx(value, rel=within) if isinstance(value, float) else value), (task, name)


def next_perplexity(model: Any, tokenizer: Any, *, masked: bool | None = None) -> float:
    """Of `CONTINUATIONS`, by one forward pass a row; or by one for them all, told which tokens are padding or not."""
    rows = []
    for row in CONTINUATIONS:
        context = tokenizer(row["context"])["input_ids"]
        rows.append((tokenizer(f"{row['context']} {row['continuation']}")["input_ids"], len(context)))
    rows.sort(key=lambda row: (-len(row[0]), row[0]))
    longest = len(rows[0][0])
    groups = [[row] for row in rows] if masked is None else [rows]
    likelihoods = []
    for group in groups:
        length = longest if masked is not None else len(group[0][0])
        ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in group])[:, :-1]
        mask = torch.tensor([[1] * (len(row) - 1) + [0] * (length - len(row)) for row, _ in group])
        with torch.no_grad():
            logits = model(ids, attention_mask=mask if masked else None, use_cache=False).logits
        for (row, start), scores in zip(group, logits.float().log_softmax(-1), strict=True):
            likelihoods.append(sum(float(scores[at - 1, row[at]]) for at in range(start, len(row))))
    return math.exp(-sum(likelihoods) / len(likelihoods))


def probed(ratio: float) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    tokens = tokenise(read_text(CALIBRATION, role="calibration"), tokenizer)
    found = secateur.probe(model, ratio)
    found.calibrate(draw_blocks(tokens, samples=8, seq_len=64, seed=0).ids)
    return found, tokenizer


class TestTheNumbers:
    @pytest.mark.parametrize("kind", ["dense", "stock"])
    def test_are_those_of_lm_evals_own_loader(
        self, kind: str, files: list[str], pruned: Callable[[str], Path]
    ) -> None:  # point 3
        directory = default_model() if kind == "dense" else pruned("stock")
        found = secateur.evaluate_tasks(directory, files, batch=3, dtype="fp32").found
        expected = by_lm_eval(directory, files)
        assert_equal(found["results"], expected["results"])
        assert found["results"]["next"]["perplexity,none"] > 1
        for key in ("versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks"):
            assert found[key] == expected[key]
        assert expected.keys() <= found.keys()

    def test_of_shared_tasks_are_those_of_lm_evals_own_loader(self, shared: Callable[[str], Path]) -> None:
        """The whole files are of the kinds that are known; a few rows of each are evaluated."""
        names = ("piqa", "boolq", "arc_easy", "lambada_openai")
        paths = [shared(f"data/zeroshot/{name}.jsonl") for name in names]
        few = {"limit": 6, "batch_size": 4, "bootstrap_iters": harness.RESAMPLES, "log_samples": False}
        model = shared("models/stories260K")
        definitions: Any = [rows_definition(path, path.stem) for path in paths]
        manager = lm_eval.tasks.TaskManager(include_defaults=False)
        expected: Any = lm_eval.simple_evaluate(
            model="hf", model_args={"pretrained": str(model)}, tasks=definitions, device="cpu", task_manager=manager, **few
        )
        found = secateur.evaluate_tasks(model, paths, limit=6, batch=4).found
        assert_equal(found["results"], expected["results"])
        counts = {name: count["original"] for name, count in found["n-samples"].items()}
        assert counts == {"piqa": 1838, "boolq": 3270, "arc_easy": 2376, "lambada_openai": 5153}

    def test_of_unequal_layers(self, files: list[str], pruned: Callable[[str], Path]) -> None:
        directory = pruned("unequal")
        assert not json.loads((directory / "secateur.json").read_text())["stock"]
        model, tokenizer = secateur.load(directory, dtype=torch.float32), AutoTokenizer.from_pretrained(directory)
        expected = next_perplexity(model, tokenizer)
        found = secateur.evaluate_tasks(directory, files[1], dtype="fp32").found["results"]["next"]
        assert found["perplexity,none"] == pytest.approx(expected, rel=1e-4)
        in_memory = secateur.evaluate_tasks(model, files[1], tokenizer=tokenizer)
        assert_equal(in_memory.found["results"], {"next": found}, within=1e-6)
        assert secateur.evaluate_tasks(directory, files[1], dtype="fp32", dynamic=0).found["results"]["next"] == found

    def test_of_a_probed_model_that_loses_nothing_are_the_dense_ones(self, files: list[str]) -> None:
        dense = secateur.evaluate_tasks(default_model(), files, dtype="fp32")
        none_lost = secateur.evaluate_tasks(default_model(), files, dtype="fp32", dynamic=0)
        assert_equal(none_lost.found["results"], dense.found["results"], within=1e-4)
        assert (dense.ratio, dense.widths, none_lost.ratio, none_lost.calibration) == (None, None, 0, None)

    def test_of_a_probed_model(self, files: list[str]) -> None:
        model, tokenizer = probed(0.4)
        expected = next_perplexity(model, tokenizer, masked=True)
        options: Any = {"dynamic": 0.4, "calibration": CALIBRATION, "samples": 8, "seq_len": 64, "dtype": "fp32"}
        on_disk = secateur.evaluate_tasks(default_model(), files[1], **options)
        in_memory = secateur.evaluate_tasks(model, files[1], tokenizer=tokenizer)
        for found in (on_disk, in_memory):
            assert found.found["results"]["next"]["perplexity,none"] == pytest.approx(expected, rel=1e-4)
            assert (found.ratio, found.widths) == (0.4, on_disk.widths)
        assert on_disk.widths is not None and on_disk.widths["ffn"]["kept"] < on_disk.widths["ffn"]["of"]
        assert on_disk.calibration is not None and "8 of" in on_disk.calibration

    def test_of_a_probed_model_know_what_is_padding(self, files: list[str]) -> None:
        """With GRIFFIN, which looks at every token."""
        model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(default_model())
        griffin = secateur.probe(model, 0.5, how=secateur.ProbePruning.griffin())
        expected = next_perplexity(griffin, tokenizer, masked=True)
        assert next_perplexity(griffin, tokenizer, masked=False) != pytest.approx(
            expected, rel=1e-3
        )  # or it would show nothing
        found = secateur.evaluate_tasks(default_model(), files[1], dynamic=0.5, griffin=True, dtype="fp32").found
        assert found["results"]["next"]["perplexity,none"] == pytest.approx(expected, rel=1e-4)

    def test_of_a_damaged_model_are_refused(self, files: list[str]) -> None:
        model = AutoModelForCausalLM.from_pretrained(default_model()).eval()
        model.lm_head.weight.data[0, 0] = math.nan
        with pytest.raises(secateur.UserError, match="a likelihood is NaN"):
            secateur.evaluate_tasks(model, files, tokenizer=AutoTokenizer.from_pretrained(default_model()))


def test_padding_is_told_from_a_token_zero() -> None:
    ids = torch.tensor([[5, 0, 7, 0], [5, 0, 0, 0], [5, 3, 0, 0], [0, 0, 0, 0]])
    assert harness.real_tokens(ids, set()).sum(1).tolist() == [3, 1, 2, 0]
    assert harness.real_tokens(ids, {(5, 0, 7, 0), (5, 0), (0,)}).sum(1).tolist() == [4, 2, 2, 1]
