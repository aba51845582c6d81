"""`secateur eval --tasks`: tasks that need no network, and what the command prints and refuses."""

import difflib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import secateur
from secateur.evaluation.tasks import load_tasks, rows_definition
from secateur.recipes.demo import default_model
from tests.recipes.refusal import assert_paragraph, command
from tests.recipes.task_files import CHOICES, files, one_index, write

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")


__all__ = ["files", "one_index"]  # fixtures
CALIBRATION = str(difflib.__file__)


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
