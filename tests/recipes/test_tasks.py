"""`secateur eval --tasks`: the numbers that lm-eval's own loader gives, of every kind of model; and tasks that need no network."""

import difflib
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.calibration.blocks import draw_blocks
from secateur.calibration.text import read_text
from secateur.calibration.tokens import tokenise
from secateur.evaluation import tasks
from secateur.evaluation.tasks import load_tasks, rows_definition
from secateur.recipes.demo import default_model
from tests.recipes.refusal import assert_paragraph, command

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")

from secateur.evaluation import harness  # noqa: E402

CALIBRATION = str(difflib.__file__)
CHOICES = [
    {"query": "Question: Which module reads a file of JSON?", "choices": ["json", "socket", "a very long name"], "gold": 0},
    {"query": "Question: What does len of a list return?\n", "choices": ["the number of its items", "None"], "gold": 0},
    {"query": "Question: What ends a loop?", "choices": ["import", "break", "a tuple"], "gold": 1},
    {"query": "import os\n\n\ndef main(", "choices": ["argv): pass", "return return"], "gold": 0},
    {
        "query": "Passage: A set holds no item twice.\nQuestion: does a set hold an item twice?",
        "choices": ["no", "yes"],
        "gold": 0,
    },
    {"query": "Passage: A list may.\nQuestion: may a list hold an item twice?", "choices": ["no", "yes"], "gold": 1},
]
CONTINUATIONS = [
    {"context": "import os\nimport sys\n\n\nclass Parser:\n    def __init__(self,", "continuation": "name):"},
    {"context": "for item in self.items:\n    if item is", "continuation": "None"},
    {"context": "def main():\n    parser = argparse.", "continuation": "ArgumentParser()"},
    {"context": "raise", "continuation": "ValueError"},
    {"context": "    def __len__(self):\n        return", "continuation": "len(self.data)"},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("rows")
    return [write(place / "python.jsonl", CHOICES), write(place / "next.jsonl", CONTINUATIONS)]


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


@pytest.fixture(scope="module", autouse=True)
def one_index() -> Iterator[None]:
    """Reading lm-eval's own definitions takes seconds: it is done once here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_manager", cache(tasks._manager))
        yield


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


class TestLocalTasks:
    def test_are_asked_as_lm_eval_asks_them(self, tmp_path: Path) -> None:
        """The same rows once as they are on the hub, read by lm-eval's own definitions, and once as query, choices and gold."""
        question, passage = "Which module reads a file of JSON?", "A set holds no item twice."
        hub = {
            "piqa": {"goal": question, "sol1": "json", "sol2": "socket", "label": 1},
            "boolq": {"passage": passage, "question": "does a set hold an item twice", "label": 0},
            "arc_easy": {"question": question, "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "B"},
            "lambada_openai": {"text": "He said that he would come"},
            "hellaswag": {
                "activity_label": "Roofing", "ctx_a": "A man is on a roof.", "ctx_b": "he",
                "endings": ["falls.", "sings."], "label": "1",
            },
        }  # fmt: skip
        rows = {
            "piqa": {"query": f"Question: {question}\n", "choices": ["json", "socket"], "gold": 1},
            "boolq": {
                "query": f"Passage: {passage}\nQuestion: does a set hold an item twice?", "choices": ["no", "yes"], "gold": 0
            },
            "arc_easy": {"query": f"Question: {question}", "choices": ["a", "b", "c"], "gold": 1},
            "lambada_openai": {"context": "He said that he would", "continuation": "come"},
            "hellaswag": {"query": "Roofing: A man is on a roof. He", "choices": ["falls.", "sings."], "gold": 1},
        }  # fmt: skip
        theirs = load_tasks([f"{name}={write(tmp_path / f'hub-{name}.jsonl', [row])}" for name, row in hub.items()])
        ours = load_tasks([write(tmp_path / f"{name}.jsonl", [row]) for name, row in rows.items()])
        for their, our in zip(theirs, ours, strict=True):
            assert their.task_name == our.task_name
            for task in (their, our):
                task.set_config(key="num_fewshot", value=0)
                task.build_all_requests()
            asked = [[request.args for request in task.instances] for task in (their, our)]
            assert asked[0] == asked[1], their.task_name
            docs = [next(iter(task.eval_docs)) for task in (their, our)]
            assert str(their.doc_to_target(docs[0])) == str(our.doc_to_target(docs[1]))

    def test_as_definitions_of_lm_evals(self, files: list[str], tmp_path: Path) -> None:
        import yaml

        definition: Any = rows_definition(Path(files[0]), "first")
        (tmp_path / "tasks").mkdir()
        for name in ("first", "second"):
            (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(definition | {"task": name}))
        both = secateur.evaluate_tasks(default_model(), [tmp_path / "tasks"]).found["results"]
        one = secateur.evaluate_tasks(default_model(), [tmp_path / "tasks" / "first.yaml"]).found["results"]
        named = secateur.evaluate_tasks(default_model(), f"first={files[0]}").found["results"]
        assert both.keys() == {"first", "second"}
        assert one["first"] == both["first"] == named["first"]
        assert both["second"]["acc,none"] == both["first"]["acc,none"]

    def test_with_examples_and_a_limit(self, files: list[str]) -> None:
        found = secateur.evaluate_tasks(default_model(), files[0], num_fewshot=2, limit=3).found
        assert (found["n-shot"], found["n-samples"]["python"]) == ({"python": 2}, {"original": 6, "effective": 3})


class TestTheCommand:
    def test_prints_lm_evals_json(self, files: list[str]) -> None:
        done = command("eval", str(default_model()), tasks=",".join(files), json_wanted=True)
        assert done.exit_code == 0, done.exception
        found = json.loads(done.stdout)  # although lm-eval prints what it does
        assert {"results", "versions", "n-shot", "configs", "higher_is_better", "n-samples", "config"} <= found.keys()
        metrics = found["results"]["python"]
        assert 0 <= metrics["acc,none"] <= 1 and metrics["acc_stderr,none"] > 0
        accs = [found["results"][name]["acc,none"] for name in ("python", "next")]
        assert found["secateur"]["mean_acc"] == pytest.approx(sum(accs) / 2)

    def test_prints_a_table(self, files: list[str]) -> None:
        done = command("eval", str(default_model()), tasks=files[0], limit=4)
        assert done.exit_code == 0, done.exception
        row = next(line.split() for line in done.stdout.splitlines() if " acc " in line)
        assert row[:4] == ["python", "0", "4", "acc"] and len(row) == 6

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"tasks": "piqs"}, "lm-eval has no task 'piqs'. Did you mean"),
            ({"tasks": "no.jsonl"}, "the task 'no.jsonl': there is no no.jsonl. Give a file of rows"),
            ({"tasks": "a=b"}, "the task 'a=b' is not NAME=FILE.jsonl."),
            ({"tasks": "piqa", "text": "t"}, "text = 't' has no effect with `tasks`: it says how a perplexity is measured."),
            ({"tasks": "piqa", "max_memory": "1GiB"}, "max_memory = '1GiB' has no effect with `tasks`"),
            ({"tasks": "piqa", "protocol": "ptb@128"}, "protocol = 'ptb@128' has no effect with `tasks`"),
            ({"tasks": "piqa", "samples": 3}, "samples = 3 has no effect without `dynamic`"),
            ({"tasks": "piqa", "limit": 0}, "limit = 0 is not allowed: it must be rows of each task, 1 or more."),
            ({"limit": 3}, "limit = 3 has no effect without `tasks`. Leave out one of them."),
            ({"num_fewshot": 0}, "num_fewshot = 0 has no effect without `tasks`."),
        ],
    )  # fmt: skip
    def test_refuses(self, given: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        done = command("eval", str(default_model()), **given)
        message = done.stderr.splitlines()[-1].removeprefix("error: ")
        assert_paragraph(done, message)
        assert message.startswith(said)

    def test_says_what_to_do_where_the_hub_is_out_of_reach(self) -> None:
        with pytest.raises(secateur.UserError) as caught:
            secateur.evaluate_tasks(default_model(), "openbookqa")
        message = str(caught.value)
        assert message.startswith("the task 'openbookqa' cannot be loaded: ")
        assert "allenai/openbookqa" in message and "openbookqa=FILE.jsonl" in message

    def test_names_the_extra(self, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("secateur.evaluation.tasks.find_spec", lambda name: None)
        with pytest.raises(secateur.UserError, match=r"pip install 'secateur\[eval\]'"):
            secateur.evaluate_tasks(default_model(), files)

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([], "has no rows"),
            ([{"text": "no task"}], "have none of the fields that say what to do with them"),
            ([CHOICES[0], {"query": "q", "choices": ["a", "b"], "gold": 2}], "line 2: gold is 2, not the number of a choice, from 0"),
            ([CHOICES[0], {"query": "q", "choices": ["a"], "gold": 0}], r"line 2: choices is \['a'\]"),
            ([CHOICES[0], {"context": "q", "continuation": "a"}], "line 2: query is None, not text"),
            ([{"context": "a", "continuation": ""}], "line 1: continuation is '', not text"),
            ([["a"]], "line 1: a list, and a row is a JSON object"),
        ],
    )  # fmt: skip
    def test_names_the_row_that_is_wrong(self, rows: list[Any], said: str, tmp_path: Path) -> None:
        with pytest.raises(secateur.UserError, match=said):
            load_tasks([write(tmp_path / "rows.jsonl", rows)])

    def test_refuses_two_tasks_with_one_name(self, files: list[str]) -> None:
        with pytest.raises(secateur.UserError, match=r"the task 'python' is in '.*python.jsonl' and in 'python=.*next.jsonl'"):
            load_tasks([files[0], f"python={files[1]}"])

    def test_refuses_what_a_model_in_memory_does_not_use(self, files: list[str]) -> None:
        model = AutoModelForCausalLM.from_pretrained(default_model())
        with pytest.raises(secateur.UserError, match="without its tokenizer"):
            secateur.evaluate_tasks(model, files)
        with pytest.raises(secateur.UserError, match="'dtype' has no effect on a model in memory"):
            secateur.evaluate_tasks(model, files, tokenizer=object(), dtype="fp32")


@pytest.mark.parametrize("options", [{}, {"dynamic": 0.0}], ids=["whole", "probed"])
def test_a_protocol_of_a_local_text_is_its_windows(options: dict[str, Any]) -> None:
    usual: Any = {"text": CALIBRATION, "max_tokens": 1280, "dtype": "fp32", **options}
    found = secateur.evaluate(default_model(), protocol="wikitext2@128", **usual)
    plain = secateur.evaluate(default_model(), seq_len=128, **usual)
    assert (found.perplexity, found.seq_len, found.predicted) == (plain.perplexity, 128, 1270)
    assert found.protocol == f"wikitext2@128: {plain.protocol}"
