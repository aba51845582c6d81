"""The directory in which the commands of a page are run: what the pages take for granted, small."""

import argparse
import asyncio.base_events
import email.message
import inspect
import json
import tarfile
import typing
import zipfile
from pathlib import Path
from types import ModuleType

from transformers import AutoModelForCausalLM, AutoTokenizer

from secateur.recipes.demo import default_model

TEXTS: dict[str, tuple[ModuleType, ...]] = {
    "text.txt": (argparse, tarfile, typing),
    "held_out.txt": (zipfile, email.message, asyncio.base_events),
}
ROWS = 12
LAYERS = 2


def furnish(place: Path) -> None:
    """Two layers of the embedded model as `path/to/model`, two texts of the standard library, rows of a task, stories."""
    for name, num_layers in (("path/to/model", LAYERS), ("src/secateur/default_model", 2 * LAYERS)):
        AutoModelForCausalLM.from_pretrained(default_model(), num_hidden_layers=num_layers).save_pretrained(place / name)
        AutoTokenizer.from_pretrained(default_model()).save_pretrained(place / name)
    for name, modules in TEXTS.items():
        (place / name).write_text("\n".join(inspect.getsource(module) for module in modules), encoding="utf-8")
    rows = [{"query": f"Question: Is {n} even?\n", "choices": ["Yes.", "No."], "gold": n % 2} for n in range(ROWS)]
    (place / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    stories = inspect.getsource(tarfile).split("\n\n")
    (place / "stories.jsonl").write_text("".join(f"{json.dumps({'story': one})}\n" for one in stories), encoding="utf-8")
