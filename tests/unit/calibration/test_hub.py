import os
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.calibration import hub
from secateur.calibration.text import read_text, read_texts
from secateur.errors import UserError


def test_every_key_is_read():
    found = hub.parse("owner/name?config=c&split=train[:10%]&column=body&first=12&revision=abc", split="test")
    assert found == hub.Hub(name="owner/name", config="c", split="train[:10%]", column="body", first=12, revision="abc")
    assert found.label == "owner/name at abc (c, train[:10%])"


def test_what_is_left_out():
    assert hub.parse("owner/name", split="test") == hub.Hub(name="owner/name", split="test", column="text")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "is not a hub data set"),
        ("?split=train", "is not a hub data set"),
        ("name?split", "is not a hub data set"),
        ("name?split=", "is not a hub data set"),
        ("name?split=a&split=b", "is not a hub data set"),
        ("name?colum=text", "unknown key 'colum'. Did you mean column? Known: config, split, column, first, revision."),
        ("name?first=0", "first=0 is not a number of rows"),
        ("name?first=ten", "first=ten is not a number of rows"),
    ],
)
def test_specs_that_cannot_be_read(spec: str, said: str):
    with pytest.raises(UserError) as caught:
        hub.parse(spec, split="train")
    assert said in str(caught.value)


def test_rows_are_joined_as_the_published_wikitext_protocol_does(local_hub: Path):
    found = read_text(f"hub:{local_hub}?split=test&column=text", role="calibration")
    assert found.body == "\n\n = test = \n\n\n\n\n The test text . \n"
    assert found.name == "tiny-wiki (test)"


def test_the_role_chooses_the_split_that_is_not_named(local_hub: Path):
    assert "train" in read_text(f"hub:{local_hub}", role="calibration").body
    assert "test" in read_text(f"hub:{local_hub}", role="evaluation").body


def test_the_first_rows_are_streamed(local_hub: Path):
    found = read_text(f"hub:{local_hub}?column=title&first=3", role="calibration")
    assert found.body == "train 0\n\ntrain 1\n\ntrain 2"
    assert found.name == "first 3 rows of tiny-wiki (train), column title"
    assert not list(local_hub.parent.rglob("*.arrow"))


def test_a_whole_split_is_cached(local_hub: Path):
    read_text(f"hub:{local_hub}?column=title", role="calibration")
    assert list(local_hub.parent.rglob("*.arrow"))


def test_one_hub_data_set_for_both_holds_out_its_last_fifth(local_hub: Path):
    calibration, evaluation = read_texts(f"hub:{local_hub}?column=title")
    assert calibration.body + evaluation.body == "train 0\n\ntrain 1\n\ntrain 2\n\ntrain 3"
    assert evaluation.name == "held-out last fifth of tiny-wiki (train), column title"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("split=nope", "'train', 'test'"),
        ("split=nope&first=2", "'train', 'test'"),
        ("config=nope", "BuilderConfig 'nope' not found"),
        ("column=nope", "row 1: no field 'nope'. Its fields: text, title, number."),
        ("column=number", "row 1: field 'number' is int, not text. Fields that are text there: text, title."),
    ],
)
def test_what_the_data_set_does_not_have(local_hub: Path, query: str, said: str):
    with pytest.raises(UserError) as caught:
        read_text(f"hub:{local_hub}?{query}", role="calibration")
    assert said in str(caught.value)


def test_a_huge_data_set_is_not_downloaded_by_accident(local_hub: Path):
    (local_hub / "README.md").write_text("---\ndataset_info:\n  download_size: 300000000000\n---\n")
    with pytest.raises(UserError, match=r"a download of 279 GiB.*first=N"):
        read_text(f"hub:{local_hub}", role="calibration")
    assert "train 0" in read_text(f"hub:{local_hub}?column=title&first=1", role="calibration").body


def test_without_network_the_error_names_what_was_tried(tmp_path: Path):
    """In a process of its own, with nothing cached: what a user without network sees."""
    code = (
        "from secateur.calibration.text import read_text\n"
        "from secateur.errors import UserError\n"
        "try: read_text('wikitext2', role='evaluation')\n"
        "except UserError as error: print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "Salesforce/wikitext (wikitext-2-raw-v1, test) cannot be read" in said
    assert "HF_HUB_OFFLINE" in said
    assert "'stdlib', which needs no network" in said
