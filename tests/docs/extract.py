"""Every command and every block of Python in README.md and docs/, in the order of the page."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = {"console", "bash", "sh", "python", "text", "json", "yaml"}
"""What a fenced block may be. Others could hide a command from the tests."""
STARTS = ("secateur ", "python ", "pip ", "make ", "pytest ", "$ ")
"""An indented block whose first line begins so is a block of commands."""
FENCE = re.compile(r"\s*(```+)\s*(\w*)")
SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, its lines joined, or one block of Python."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced or an indented block; `language` is empty where a fence names none, and `indented` without a fence."""

    line: int
    language: str
    lines: list[str]


def pages() -> list[str]:
    """README.md and every page of docs/, as paths from the root."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def steps(page: str) -> list[Step]:
    """What a person who follows the page would type."""
    return [step for block in blocks((ROOT / page).read_text(encoding="utf-8")) for step in _steps(page, block)]


def spans(page: str) -> list[str]:
    """The code inside the sentences of a page."""
    text = (ROOT / page).read_text(encoding="utf-8").splitlines()
    inside = {at for block in blocks("\n".join(text)) for at in range(block.line - 1, block.line + len(block.lines))}
    return [span for at, line in enumerate(text, start=1) if at not in inside for span in SPAN.findall(line)]


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page. `line` is that of the first line inside."""
    found: list[Block] = []
    fence, blank = "", True
    for at, line in enumerate(text.splitlines(), start=1):
        mark = FENCE.match(line)
        if fence:
            if line.strip() == fence:
                fence = ""
            else:
                found[-1].lines.append(line.strip() if found[-1].language in ("console", "bash", "sh") else line)
        elif mark and "`" not in line[mark.end() :]:
            fence = mark[1]
            found.append(Block(line=at + 1, language=mark[2], lines=[]))
        elif line.startswith("    ") and blank:
            found.append(Block(line=at, language="indented", lines=[line.strip()]))
        elif (
            line.startswith("    ")
            and found
            and found[-1].language == "indented"
            and found[-1].line + len(found[-1].lines) == at
        ):
            found[-1].lines.append(line.strip())
        blank = not line.strip()
    return found


def _steps(page: str, block: Block) -> Iterator[Step]:
    if block.language == "python":
        yield Step(page=page, line=block.line, language="python", text="\n".join(block.lines))
    elif block.language in ("console", "bash", "sh") or (block.language == "indented" and block.lines[0].startswith(STARTS)):
        prompt = "$ " if block.language == "console" or block.lines[0].startswith("$ ") else ""
        yield from _commands(page, block, prompt)


def _commands(page: str, block: Block, prompt: str) -> Iterator[Step]:
    """Lines that begin with the prompt, with those that a backslash joins to them; what a program answers is left out."""
    lines = enumerate(block.lines, start=block.line)
    for at, line in lines:
        if not line.startswith(prompt) or not line or line.startswith("#"):
            continue
        text = line.removeprefix(prompt)
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
        yield Step(page=page, line=at, language="shell", text=text)
