"""Parts of pages that are made by the program: `python -m website.blocks` writes them, `--check` says which are out of date.

A part stands between two comments, `<!-- made: KIND ITEM; ITEM -->` and `<!-- end -->`; what is between them is replaced. Kinds:

    describe    criterion:flap; recipe:flap-paper     docstrings, options and defaults of what has a name
    compared    best; flap[compensate=bias]           recorded perplexities of entries of `secateur compare`
    costs       best; fast                            recorded seconds of such entries, and how the results load
    dynamic     paper; griffin                        recorded perplexities of what chooses or corrects for each batch
    gradients   backprop; spsa-weights:n=1            recorded quality of gradient estimates
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from website.recorded import compared, costs, dynamic, gradients
from website.registered import describe

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- made: (\w+) ([^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
KINDS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "describe": describe,
    "compared": compared,
    "costs": costs,
    "dynamic": dynamic,
    "gradients": gradients,
}


def pages() -> list[Path]:
    """Every page that is written by hand, or partly."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def items(text: str, kind: str) -> list[str]:
    """What the parts of one kind in a page name."""
    return [item.strip() for found in PART.finditer(text) if found[2] == kind for item in found[3].split(";")]


def filled(text: str) -> str:
    """A page with its parts made anew. Raises `KeyError` for a kind or an item that does not exist."""
    return PART.sub(lambda found: f"{found[1]}{KINDS[found[2]](_items(found[3]))}\n{found[5]}", text)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(";")]


def stale() -> list[Path]:
    """Pages whose made parts are not what the program says."""
    return [page for page in pages() if filled(text := page.read_text(encoding="utf-8")) != text]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the parts of README.md and docs/ that are made by the program.")
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if a page is out of date.")
    check = parser.parse_args().check
    old = stale()
    if check and old:
        parser.exit(1, f"out of date: {', '.join(str(page.relative_to(ROOT)) for page in old)}. Run: make docs\n")
    for page in [] if check else old:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
