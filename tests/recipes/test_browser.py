"""The report as a reader sees it: in Chromium, at a telephone's and a desk's width, in light and dark."""

from pathlib import Path

import pytest

from secateur.reporting.page import html_report
from tests.recipes.browser import seen
from tests.unit.reporting import made

GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 22, 28)"}
PAGES = {
    "one": [made.pruned(), made.timed("smaller"), made.tasked("smaller")],
    "many": made.everything(),
    "bare": [made.evaluated("m")],
}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("pages", PAGES)
def test_the_page_is_whole_in_a_browser(pages: str, scheme: str, width: int, tmp_path: Path) -> None:
    page = html_report(PAGES[pages])
    found = seen(page, tmp_path, width=width, scheme=scheme)
    assert (found["view"], found["dark"], found["ground"]) == (width, scheme == "dark", GROUND[scheme])
    assert found["wide"] <= width, "nothing is wider than the screen"
    assert (found["outside"], found["clipped"]) == ([], [])
    assert len(found["plots"]) == page.count("<svg")
    assert [plot for plot in found["plots"] if plot["width"] < 300 or plot["height"] < 30 or plot["ink"] < 2] == []
    assert found["escaped"] == [], "no label or shape leaves its plot"
    assert found["touching"] == [], "no two labels lie on each other"
    assert (found["small"], found["faint"]) == ([], []), "all can be read"
    assert found["loaded"] == [], "and nothing was fetched"


def test_the_look_sees_what_is_wrong(tmp_path: Path) -> None:
    """So that what passes above means something."""
    page = """<!doctype html><body style="margin:0"><div style="width:700px">wide</div><p style="color:#999">faint</p>
    <svg viewBox="0 0 358 50" width="358" aria-label="plot"><text x="300" y="20">a label that leaves</text>
    <text x="0" y="20" style="font-size:6px">one</text><text x="2" y="21">two</text></svg></body>"""
    found = seen(page, tmp_path, width=390, scheme="light")
    assert found["wide"] > 390 and found["outside"] and found["faint"] and found["small"] == ["one"]
    assert found["escaped"] == ["a label that leaves"] and found["touching"] == [["one", "two"]]
