"""The site builds with no warning, has a page for every page, and needs nothing from another host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.extract import ROOT, pages

NEEDED = re.compile(r"<(?:script|img|link|iframe|source|video)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
STYLE = re.compile(r"url\([\"']?((?:https?:)?//[^\"')]+)|@import\s+[\"']((?:https?:)?//[^\"']+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


def test_every_page_is_on_it_and_can_be_reached_from_the_index(site: Path) -> None:
    expected = {page.removeprefix("docs/").replace(".md", ".html") for page in pages() if page != "README.md"} | {"index.html"}
    assert expected <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    linked = set(re.findall(r'href="?([\w./-]+\.html)', (site / "index.html").read_text(encoding="utf-8")))
    assert expected <= {link.removeprefix("./") for link in linked}


def test_it_needs_nothing_from_another_host(site: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in [*site.rglob("*.html"), *site.rglob("*.css")]}
    outside = {(path.name, found) for path, text in texts.items() for found in NEEDED.findall(text)}
    outside |= {(path.name, "".join(found)) for path, text in texts.items() for found in STYLE.findall(text)}
    assert not outside


def test_links_inside_lead_somewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        if path.name == "404.html":  # it may be shown anywhere, so its links begin at the root
            continue
        for link in re.findall(r'href="?([^"# >]+)', path.read_text(encoding="utf-8")):
            if not re.match(r"\w+:|//|data:", link):
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_lists_and_tables_are_no_running_text(site: Path) -> None:
    """GitHub takes a list or a table right after a sentence, and mkdocs does not."""
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        broken = [p for p in re.findall(r"<p>(.*?)</p>", text, re.DOTALL) if re.search(r"^(?:- |\d+\. |\| )", p, re.MULTILINE)]
        assert not broken, f"{path.name}: {broken[0][:200]}"
