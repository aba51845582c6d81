import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.calibration import stdlib
from secateur.calibration import text as text_module
from secateur.calibration.text import Text, hold_out, read_text, read_texts
from secateur.errors import UserError


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_text_file_is_read_as_it_is(tmp_path: Path):
    body = " One\r\ntwo — drei\n\n"
    (tmp_path / "a.md").write_bytes(body.encode())
    found = read_text(str(tmp_path / "a.md"), role="calibration")
    assert (found.body, found.name, found.joined) == (body, "a.md", "as it is in the file")


def test_a_byte_order_mark_is_not_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwords")
    assert read_text(str(tmp_path / "a.txt"), role="evaluation").body == "words"


def test_rows_are_joined_by_a_blank_line_and_empty_ones_count(tmp_path: Path):
    spec = write_rows(tmp_path / "a.jsonl", [{"text": "one"}, {"text": ""}, {"text": "two"}])
    found = read_text(spec, role="calibration")
    assert (found.body, found.name, found.joined) == ("one\n\n\n\ntwo", "a.jsonl", "rows joined by a blank line")


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_another_field_is_named_after_a_colon(tmp_path: Path, suffix: str):
    spec = write_rows(tmp_path / f"a.{suffix}", [{"text": "no", "body": "yes"}, {"body": "and yes"}])
    found = read_text(f"{spec}:body", role="calibration")
    assert (found.body, found.name) == ("yes\n\nand yes", f"a.{suffix}:body")


def test_empty_lines_between_json_rows_are_passed_over(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert read_text(str(tmp_path / "a.jsonl"), role="calibration").body == "one\n\ntwo"


def test_parquet(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", "b"], "story": ["c", "d"]}), tmp_path / "a.parquet")
    assert read_text(f"{tmp_path / 'a.parquet'}", role="calibration").body == "a\n\nb"
    assert read_text(f"{tmp_path / 'a.parquet'}:story", role="calibration").body == "c\n\nd"


def test_a_large_file_is_read_up_to_the_limit_and_its_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_module, "MAX_SIZE", 2**20)
    (tmp_path / "a.txt").write_text("ab" + "é" * 2**20)  # the limit falls between the two bytes of no letter
    (tmp_path / "b.txt").write_text("a" + "é" * 2**20)  # the limit falls inside a letter
    found = read_text(str(tmp_path / "a.txt"), role="calibration")
    assert found.name == "first 1 MiB of a.txt"
    assert found.body == "ab" + "é" * (2**19 - 1)
    assert read_text(str(tmp_path / "b.txt"), role="calibration").body == "a" + "é" * (2**19 - 1)


def test_a_file_of_exactly_the_limit_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_module, "MAX_SIZE", 6)
    (tmp_path / "a.txt").write_text("abcdef")
    assert read_text(str(tmp_path / "a.txt"), role="calibration").name == "a.txt"


def test_many_rows_are_read_up_to_the_limit_and_the_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_module, "MAX_SIZE", 8)
    spec = write_rows(tmp_path / "a.jsonl", [{"text": "four"}, {"text": "four"}, {"text": "more"}])
    found = read_text(spec, role="calibration")
    assert (found.body, found.name) == ("four\n\nfour", "first 2 rows of a.jsonl")


def test_the_built_in_text_has_two_splits():
    calibration, evaluation = read_texts("stdlib")
    assert calibration.body == stdlib.text("calibration")
    assert evaluation.body == stdlib.text("evaluation")
    assert calibration.name.startswith("stdlib: calibration split of the Python 3.")
    assert evaluation.joined == "documents joined by <|endoftext|>"


def test_an_evaluation_text_of_its_own_leaves_the_calibration_text_whole(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a " * 100)
    (tmp_path / "b.txt").write_text("b " * 100)
    found = read_texts(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert [t.body for t in found] == ["a " * 100, "b " * 100]


def test_one_file_for_both_holds_out_its_last_fifth(tmp_path: Path):
    (tmp_path / "a.txt").write_text("word " * 100)
    calibration, evaluation = read_texts(str(tmp_path / "a.txt"))
    assert (calibration.name, evaluation.name) == ("first four fifths of a.txt", "held-out last fifth of a.txt")
    assert (calibration.body, evaluation.body) == ("word " * 80, "word " * 20)


@given(st.text(alphabet="ab \n", max_size=200))
def test_holding_out_loses_and_repeats_nothing(body: str):
    calibration, evaluation = hold_out(Text(name="x", body=body, joined="as is"))
    assert calibration.body + evaluation.body == body
    assert len(body) * 0.72 - 2 <= len(calibration.body) <= len(body) * 0.8


@pytest.mark.parametrize(
    ("body", "calibration"),
    [
        ("x" * 73 + "\n\n" + "y" * 3 + "\n" + "z" * 21, "x" * 73 + "\n\n"),
        ("x" * 73 + "\n" + "y y" + "z" * 23, "x" * 73 + "\n"),
        ("x" * 75 + " " + "z" * 24, "x" * 75 + " "),
        ("x" * 10 + "\n\n" + "z" * 88, "x" * 10 + "\n\n" + "z" * 68),
    ],
    ids=["paragraph", "line", "word", "none near"],
)
def test_the_cut_falls_after_a_paragraph_or_line_or_word_that_ends_near(body: str, calibration: str):
    assert hold_out(Text(name="x", body=body, joined="as is"))[0].body == calibration


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.txt", b"ok \xff\xfe", "a.txt is not UTF-8 text: invalid start byte at byte 3"),
        ("a.txt", b"ok \xc3", "a.txt is not UTF-8 text: unexpected end of data at byte 3"),
        ("a.bin", b"PK\0\0", "holds a zero byte at character 2"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', "a.jsonl, line 3: a list, not an object"),
        ("a.json", b'[\n {"text": "a"}\n]', "a.json, line 1: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b", "id": 3}\n', "line 2: no field 'text'. Its fields: body, id."),
        ("a.jsonl", b'{"text": null, "body": "b"}\n', "field 'text' is NoneType, not text. Fields that are text there: body."),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl, line 1: field 'text' is not valid Unicode"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl, line 1: not JSON"),
        ("a.parquet", b"junk", "a.parquet: cannot be read as a parquet file"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_text(str(tmp_path / name), role="calibration")
    assert said in str(caught.value)


def test_a_missing_field_says_how_to_name_another(tmp_path: Path):
    spec = write_rows(tmp_path / "a.jsonl", [{"body": "b"}])
    with pytest.raises(UserError, match=r"a\.jsonl:FIELD"):
        read_text(spec, role="calibration")


def test_a_directory_is_not_a_text(tmp_path: Path):
    with pytest.raises(UserError, match="is a directory"):
        read_text(str(tmp_path), role="calibration")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_text("words")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_text(str(tmp_path / "a.txt"), role="calibration")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "wikitxt2",
            "'wikitxt2' is neither a preset nor a file. Did you mean wikitext2? Presets: stdlib, wikitext2, c4, ptb, tiny",
        ),
        ("no/such/file.txt", "neither a preset nor a file. Presets:"),
        ("no_such.jsonl:body", "neither a preset nor a file. Presets:"),
        ("stdlib:nonsense", "no split 'nonsense'"),
    ],
)
def test_unknown_texts(spec: str, said: str):
    with pytest.raises(UserError) as caught:
        read_text(spec, role="evaluation")
    assert said in str(caught.value)
