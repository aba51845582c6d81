"""Hooks of mkdocs: README.md, benchmarks/results and LICENSE become pages too, and links between pages work here as they do on GitHub.

A page that the navigation in mkdocs.yml does not name goes to the end of its directory's section.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SECTIONS = {"": "Guide", "papers": "Methods", "decisions": "Inside", "results": "Measured"}
"""Directory of the site -> section of the navigation for pages that it does not name."""
OUTSIDE = {"README.md": "index.md", "LICENSE": "license.md", "benchmarks/results/README.md": "results/index.md"}
"""Place in the repository -> place on the site, for what does not lie in docs/."""
RESULTS = "benchmarks/results"
LINK = re.compile(r"(?<!!)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
DESCRIBED = re.compile(r"<!-- made: describe (.*?) -->")
LISTS = {
    "papers": "# Methods\n\nA page for every method, compensation, allocation and gradient estimator.\n",
    "decisions": "# Decisions\n\nWhat was decided while this was built, and why.\n",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation, before mkdocs looks for pages that are missing from it."""
    named = set(_named(config.nav))
    sections = {title: pages for entry in config.nav or [] for title, pages in entry.items() if isinstance(pages, list)}
    for page in _pages():
        if page not in named:
            sections[SECTIONS[posixpath.dirname(page)]].append(page)
    return config


def _named(entries: Any) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    return [name for entry in inner for name in _named(entry)]


def _pages() -> list[str]:
    """Every page of the site, the lists of a section first."""
    written = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    results = [f"results/{path.name}" for path in (ROOT / RESULTS).glob("*.md") if path.name != "README.md"]
    made = [*OUTSIDE.values(), *(f"{section}/index.md" for section in LISTS)]
    return sorted([*written, *results, *made], key=lambda page: (page.count("/"), not page.endswith("index.md"), page))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of files outside docs/, and the lists of the sections."""
    for place, page in OUTSIDE.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        if place == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        if page == "results/index.md":
            text += "\n" + _listed([f"results/{path.name}" for path in sorted((ROOT / RESULTS).glob("*.md"))])
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.name != "README.md":
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for section, text in LISTS.items():
        pages = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs" / section).glob("*.md"))]
        files.append(File.generated(config, f"{section}/index.md", content=f"{text}\n{_listed(pages)}"))
    return files


def _listed(pages: list[str]) -> str:
    shown = [page for page in pages if posixpath.basename(page) != "README.md"]
    rows = [f"- [{_title(page)}]({posixpath.basename(page)}){_names(page)}" for page in shown]
    return "\n".join(rows) + "\n"


def _names(page: str) -> str:
    """What has a name on the command line and is described on a page, by kind."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8") if not page.startswith("results/") else ""
    named = [item.strip().split(":") for found in DESCRIBED.findall(text) for item in found.split(";")]
    kinds = {kind: [f"`{name}`" for one, name in named if one == kind] for kind, _ in named}
    return "".join(f"; {kind} {', '.join(found)}" for kind, found in kinds.items())


def _title(page: str) -> str:
    path = ROOT / RESULTS / posixpath.basename(page) if page.startswith("results/") else ROOT / "docs" / page
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return path.stem if page.startswith("results/") else first.removeprefix("# ")


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links, which say where a file lies in the repository, to where it lies on the site. What has no page fails the build."""
    here = _in_repository(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        there = _on_site(target)
        if there is None:
            return found[0]
        return f"]({posixpath.relpath(there, posixpath.dirname(page.file.src_uri) or '.')}{found[2] or ''})"

    return LINK.sub(moved, markdown)


def _in_repository(page: str) -> str:
    """Where the text of a page lies in the repository."""
    made = {there: here for here, there in OUTSIDE.items()}
    if page in made:
        return made[page]
    return f"{RESULTS}/{posixpath.basename(page)}" if page.startswith("results/") else f"docs/{page}"


def _on_site(place: str) -> str | None:
    """Where something of the repository lies on the site, if it does."""
    if place in OUTSIDE:
        return OUTSIDE[place]
    if place == RESULTS or place.startswith(f"{RESULTS}/"):
        return posixpath.normpath(f"results/{place.removeprefix(RESULTS).lstrip('/') or 'index.md'}")
    if place == "docs" or not place.startswith("docs/"):
        return None
    inside = place.removeprefix("docs/")
    return f"{inside}/index.md" if inside in LISTS else inside
