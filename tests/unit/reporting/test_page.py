"""The page: one file that needs nothing else, right figures in it, and nothing in a record that could harm its reader."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.records import Model, Record
from secateur.reporting.page import MARK, html_report
from tests.unit.reporting import made

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Everything a test asks of a page; fails for tags that are not closed in their order."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(body)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def told(*records: Record) -> str:
    return Page(html_report(records)).words


def images(body: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", body, re.DOTALL)]


@pytest.mark.parametrize(
    "records", [made.everything(), [made.pruned()], [made.evaluated("m")], [made.compared()], [made.generated()], []]
)
def test_the_page_needs_nothing_else(records: list[Record]) -> None:
    body = html_report(records)
    page = Page(body)
    assert body.lstrip().startswith("<!DOCTYPE html>")
    assert MARK in body[:2000]
    assert len(body.encode()) < 2_000_000
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed"} == set()
    named = [attrs[name] for _, attrs in page.tags for name in ("href", "src", "srcset", "action", "data") if name in attrs]
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(value and value.startswith("#") and value[1:] in ids for value in named), (
        "links lead to places on the page alone"
    )
    assert re.findall(r"url\(|@import", body) == []
    assert set(re.findall(r"https?://[^\"' <]*", body)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    "records", [[made.pruned(layers=126)], [made.pruned(f"m{n}", kept=300 + n, layers=32) for n in range(12)]]
)
def test_a_large_report_is_not_too_large(records: list[Record]) -> None:
    assert len(html_report(records).encode()) < 2_000_000


def test_every_plot_is_labelled_and_well_formed() -> None:
    found = images(html_report(made.everything()))
    assert len(found) > 20
    for image in found:
        assert image.get("role") == "img" and len(image.get("aria-label") or "") > 10
        assert not re.search(r"nan|inf\b", ET.tostring(image, encoding="unicode")), "no shape is nowhere"


def test_the_figures_of_a_pruned_model() -> None:
    words = told(made.pruned())
    for figure in (
        "smaller", "30.0% of the parameters of all layers left base, chosen by sensitivity; least-squares repaired what stays.",
        "4.40 M from 6.56 M (−32.9%)", "8.39 MiB from 12.5 MiB", "12.50 ± 0.60 from 10.00 ± 0.50 (+25.0%)",
        "0.2230 ± 0.0040 nats per token",
        "400 of 640", "3 of 4", "Pruned in 7.2 s 6.00 MiB of memory at the peak", "2.0e-07",
        "secateur prune base --out smaller --ratio 0.3",
        'from_pretrained("smaller")', "written as Mistral.", "128 of 929 windows", "Abacus 3000", "torch 2", "all 2,519,040",
        "157,440",
        "2.01%", "0.12%",
    ):  # fmt: skip
        assert figure in words, figure


def test_what_was_not_measured_is_said() -> None:
    words = told(
        made.pruned(
            perplexity_before=None, perplexity_after=None, perplexity_stderr_before=None, loss_rise=None, evaluation=None
        )
    )
    assert "Quality was not measured. Measure it, and give the report that run as well: secateur eval smaller" in words
    assert "Speed was not measured. Measure it, and give the report that run as well: secateur bench base smaller" in words
    assert "nats per token more" not in words
    both = told(made.pruned("a"), made.pruned("b", evaluation="another text"))
    assert "Speed: no two of these models were timed at the same shape." in both
    assert "Quality: no two" not in both, "the original was measured with each of them"


def test_measurements_join_the_model_of_the_same_weights() -> None:
    words = told(
        made.pruned(), made.evaluated("smaller"), made.evaluated("base", 9.9), made.tasked("smaller"), made.timed("smaller")
    )
    assert "1 models" not in words and "Comparison" not in words
    assert "all windows of 2,048. Whiskers: one standard error" in words
    assert "12.60 ± 0.25" in words and "9.90 ± 0.20" in words
    assert "piqa acc 1,838 0.610 ± 0.011" in words
    assert "1.40×" in words and "prefill 4 512 20.0 ms" in words
    assert "1.00 GiB before, 512 MiB after (−50.0%): resident memory of a process for each model." in words
    assert "was not measured" not in words


def test_another_model_of_that_name_does_not_join() -> None:
    other = made.evaluated("smaller")
    stranger = Record(**{**vars(other), "models": {"model": Model(name="smaller", identity="of other weights")}})
    assert "2 models" in told(made.pruned(), stranger)
    probed = Record(**{**vars(other), "models": {"model": Model(name="smaller", identity="of smaller", probed="dynamic 0.4")}})
    assert "smaller, dynamic 0.4" in told(made.pruned(), probed), "a model that batches change is a model of its own"


def test_a_slower_model_is_called_so() -> None:
    words = told(made.pruned("shallow"), made.timed("shallow", speedup=0.97))
    assert "other is not faster in decode at batch 1 x 16: 0.97 times as fast." in words
    assert "is not faster" not in told(made.pruned("shallow"), made.timed("shallow"))


def test_only_the_model_it_was_pruned_from_is_before() -> None:
    other = made.timed("a", base="b", speedup=0.94)
    words = told(made.pruned("a"), made.pruned("b"), other)
    assert "0.94× as fast as b: prefill, batch 4 × 512" in words and "as fast as before" not in words
    assert "against b: other is not faster" in words and "(0.94× b)" in words
    both = told(made.pruned("a"), made.pruned("b"), other, made.timed("a", speedup=1.4))
    assert "1.40× as fast as before" in both, "what was timed against the original comes first"


def test_several_models_become_a_comparison() -> None:
    body = html_report(
        [made.pruned("a", perplexity=12.0), made.pruned("b", kept=300, perplexity=11.0), made.timed("a"), made.timed("b")]
    )
    words = Page(body).words
    assert "2 models" in words
    assert (
        "Quality against size" in words
        and "Quality against latency, prefill" in words
        and "Quality against latency, decode" in words
    )
    assert "Time: as a share of base's, in paired runs." in words, "two commands' seconds are not compared"
    labels = [image.get("aria-label") or "" for image in images(body)]
    assert "perplexity, less is better against parameters, fewer is smaller of 3 models; on the front: 3, 1." in labels, (
        "b beats a in both"
    )


HOSTILE = "<script>alert(1)</script>\"'&<b>"


def hostile() -> list[Record]:
    """Every text of every record is an attempt."""

    def poisoned(value: Any, at: str = "") -> Any:
        if isinstance(value, dict):
            return {key: poisoned(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner, at) for inner in value]
        return HOSTILE if isinstance(value, str) and at not in ("verb", "phase", "scale", "axis", "model") else value

    records = []
    for record in made.everything():
        body = record.to_json()
        models = {part: {**model, "name": HOSTILE} for part, model in body["models"].items()}
        fixed = {key: body[key] for key in ("schema", "verb")}
        records.append(Record.from_json({**poisoned(body), **fixed, "models": models}, "x"))
    return records


def test_a_hostile_name_is_a_name() -> None:
    body = html_report(hostile())
    page = Page(body)
    assert HOSTILE in page.words
    assert {tag for tag, _ in page.tags} & {"script", "b"} == set()
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []
    for image in images(body):
        assert image.find(".//{*}script") is None


ENDLESS = {**made.timed("m").result["cells"][0], "seconds_most": float("inf")}


@pytest.mark.parametrize(
    ("record", "path", "value", "said"),
    [
        (made.pruned(), ("result", "perplexity_after"), "abc", "`result.perplexity_after` is 'abc', and input should be a valid"),
        (made.pruned(), ("result", "method"), None, "`result.method` is None, and input should be a valid string"),
        (made.pruned(), ("figures", "layers"), [{"ffn": 641}], "layer 0 keeps 641 of axis 'ffn'"),
        (made.pruned(), ("figures", "layers"), [{"depth": 1}], "layer 0 keeps 1 of axis 'depth'"),
        (made.pruned(), ("figures", "scores"), {"kv": {"scale": "log", "edges": [1.0], "layers": []}}, "`figures.scores.kv.edges` is"),
        (made.pruned(), ("figures", "scores"), {"kv": {"scale": "log", "edges": [0.0, 1.0], "layers": []}}, "edges"),
        (made.pruned(), ("figures", "scores"), {"kv": {"scale": "linear", "edges": [2.0, 1.0], "layers": []}}, "edges"),
        (made.timed("m"), ("result", "cells"), [{"batch": "many"}], "`result.cells.0.batch` is 'many'"),
        (made.timed("m"), ("result", "cells"), [ENDLESS], "`result.cells.0.seconds_most` is inf"),
        (made.evaluated("m"), ("result", "protocol"), 7, "`result.protocol` is 7"),
        (made.compared(), ("result", "cells"), 7, "`result.cells` is 7"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(record: Record, path: tuple[str, str], value: Any, said: str) -> None:
    body = json.loads(json.dumps(record.to_json()))
    body[path[0]][path[1]] = value
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        html_report([Record.from_json(body, "runs/x/record.json")])
    assert re.match(r"runs/x/record.json is damaged: .* Run its command again\.", str(refused.value))


@pytest.mark.parametrize("values", [(float("inf"), float("inf")), (float("nan"), 3.0), (0.0, 0.0), (1e300, 1e-300)])
def test_odd_figures_are_drawn_or_left_out(values: tuple[float, float]) -> None:
    body = html_report([
        made.pruned(perplexity_after=values[0], perplexity_stderr_after=values[1]), made.pruned("b", perplexity_before=values[1]),
        made.evaluated("smaller", values[0], stderr=values[1]), made.evaluated("b", values[1]),
    ])  # fmt: skip
    for image in images(body):
        assert not re.search(r'"-?(nan|inf)', ET.tostring(image, encoding="unicode"))
