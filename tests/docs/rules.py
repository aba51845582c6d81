"""How the commands of the pages are run small and without a network. All that differs from what a reader types stands here."""

from collections.abc import Mapping
from typing import NamedTuple

SMALL: Mapping[str, str] = {
    "prune": "--samples 8 --seq-len 64",
    "compare": "--samples 8 --seq-len 64 --ratios 0.3 --seeds 0",
    "eval --text": "--max-tokens 1024",
    "eval --tasks": "--tasks rows.jsonl --limit 4 --batch 4",
    "eval --dynamic": "--samples 8",
    "eval --small": "--samples 8",
    "generate --dynamic": "--samples 8 --seq-len 64",
    "generate --small": "--samples 8 --seq-len 64",
    "generate": "--max-new-tokens 4",
    "bench": "--batch 2 --seq-len 16 --new-tokens 2 --runs 1",
    "study gradients": "--estimators backprop --samples 2 --seq-len 32 --ratios 0.3 --seeds 0",
}
"""Subcommand, or subcommand and an option that it is given -> what is appended. Of two equal options the last one counts.

The tasks of lm-eval have their rows on the hub, so rows of the test's own stand in for them.
"""

READING = ("bench", "demo", "eval", "inspect", "ls")
"""Subcommands that leave nothing for what comes behind them: with the same options they are run once for all pages, else parsed."""

OFFLINE: Mapping[str, tuple[str, str]] = {
    "prune": ("--calibration", "--calibration text.txt --eval held_out.txt"),
    "compare": ("--calibration", "--calibration text.txt --eval held_out.txt"),
    "eval": ("--text", "--text held_out.txt"),
    "eval --dynamic": ("--calibration", "--calibration text.txt"),
    "eval --small": ("--calibration", "--calibration text.txt"),
}
"""As above -> an option, and what is appended where it is left out: the default text is on the hub."""


class Change(NamedTuple):
    """Text of a page that is replaced before it is run."""

    page: str
    old: str
    new: str
    why: str


CHANGES = (
    Change(
        "README.md",
        'out="smaller", ratio=0.3',
        'out="smaller", ratio=0.3, force=True, calibration="text.txt", **SMALL',
        "as the command before it",
    ),
    Change("docs/benchmarks.md", " MODEL ", " path/to/model ", "a placeholder"),
    Change("docs/benchmarks.md", '"best flap-paper ..."', '"best flap-paper"', "an ellipsis"),
    Change(
        "docs/benchmarks.md",
        " DIR --ratio 0.3 --out PRUNED",
        " path/to/model --ratio 0.3 --out PRUNED",
        "a model that was trained for hours",
    ),
    Change(
        "docs/benchmarks.md",
        "DIR/calibration.txt --eval DIR/evaluation.txt",
        "text.txt --eval held_out.txt",
        "the texts beside that model",
    ),
    Change("docs/benchmarks.md", "--dtype DTYPE --kv KV", "--dtype float32 --kv 4", "placeholders"),
    Change("docs/benchmarks.md", "[--tokens N] [--minutes M]", "[--tokens 1] [--minutes 1]", "placeholders"),
    Change("docs/compare.md", " MODEL ", " path/to/model ", "a placeholder"),
    Change("docs/compare.md", "train.txt --eval valid.txt", "text.txt --eval held_out.txt", "names"),
    Change(
        "docs/dynamic.md", 'effort="best", calibration="text.txt"', 'effort="best", calibration="text.txt", **SMALL', "small"
    ),
    Change("docs/evaluation.md", " MODEL ", " path/to/model ", "a placeholder"),
    Change("docs/gguf.md", "export model --to", "export smaller --to", "a checkpoint of gigabytes, made by the line above"),
    Change("docs/gradients.md", " MODEL ", " path/to/model ", "a placeholder"),
    Change("docs/gradients.md", "train.txt --eval valid.txt", "text.txt --eval held_out.txt", "names"),
    Change(
        "docs/loading.md", '("smaller", trust_remote_code=True)', '("unequal", trust_remote_code=True)', "one page, two models"
    ),
    Change("docs/loading.md", 'from_pretrained("smaller")\nmodel', 'from_pretrained("unequal")\nmodel', "the same"),
    Change("docs/loading.md", 'secateur.load("smaller")', 'secateur.load("unequal")', "the same"),
)

PRELUDE: Mapping[str, tuple[str, ...]] = {
    "docs/gguf.md": ("secateur prune path/to/model --out smaller --ratio 0.3 --round-to 32",),
    "docs/report.md": (
        "secateur prune path/to/model --out small --ratio 0.1",
        "secateur prune path/to/model --out smaller --ratio 0.2",
        "secateur prune path/to/model --out smallest --ratio 0.3",
        "secateur bench path/to/model smaller --batch 2 --seq-len 16 --new-tokens 2 --runs 1",
    ),
    "docs/loading.md": (
        "secateur prune path/to/model --out smaller --ratio 0.3 --format stock",
        "secateur prune path/to/model --out unequal --ratio 0.3",
    ),
}
"""Page -> commands that were typed before it, by what it says."""

UNRUN: Mapping[str, str] = {
    r"^secateur .*--push-to-hub": "it publishes on the hub",
    r"^secateur .*--device cuda": "it needs a GPU",
    r"^secateur .*hub:": "it reads from the hub",
    r"^secateur eval .*--protocol wikitext2@2048$": "it reads from the hub",
    r"^python benchmarks/": "it takes minutes to hours, and most need a checkpoint of gigabytes",
    r"^make ": "it installs",
    r"^pip ": "it installs",
    r"^pytest ": "it is run by `make slow`",
}
"""Commands that are only parsed -> why. The program's own parser reads them; of make, pip and pytest what they name must exist."""
