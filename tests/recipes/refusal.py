"""What a refusal looks like, from Python and on the command line: one paragraph, exit code 2, nothing changed on the disk."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import secateur
from secateur.cli.app import app
from tests.recipes.tiny_checkpoint import TINY, text_beside


def job(model: Path, **options: Any) -> dict[str, Any]:
    """Settings that prune a tiny checkpoint by 30%; `options` win, and one that is None is left out.

    By flap, which walks once, unless an effort chooses.
    """
    usual = {"out": model.parent / "out", "ratio": 0.3, "calibration": str(text_beside(model)), **TINY}
    usual |= {} if "effort" in options else {"method": "flap"}
    return {name: value for name, value in (usual | options).items() if value is not None}


def command(*words: str, json_wanted: bool = False, **options: Any) -> Result:
    flags = [*words, *(["--json"] if json_wanted else [])]
    for name, value in options.items():
        flag = "--" + {"evaluation": "eval"}.get(name, name.replace("_", "-"))
        flags += [flag] if value is True else [f"{flag}={value}"]
    return CliRunner().invoke(app, flags, prog_name="secateur")


def result(*words: str, **options: Any) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = command(*words, json_wanted=True, **options)
    assert done.exit_code == 0, done.exception or done.stderr
    return json.loads(done.stdout)


def refused(model: Path | str, *, home: Path | None = None, **options: Any) -> str:
    """The message of a pruning that is refused. Everything under `home` (the model's parent) stays as it was."""
    home = home or Path(model).parent
    before = tree(home)
    with pytest.raises(secateur.UserError) as caught:
        secateur.prune(model, **options)
    assert tree(home) == before
    message = " ".join(line.strip() for line in str(caught.value).splitlines())
    assert_paragraph(command("prune", str(model), **options), message)
    assert tree(home) == before
    return message


def refused_eval(model: Path | str, **options: Any) -> str:
    """The message of an evaluation that is refused."""
    with pytest.raises(secateur.UserError) as caught:
        secateur.evaluate(model, **options)
    message = " ".join(line.strip() for line in str(caught.value).splitlines())
    assert_paragraph(command("eval", str(model), **options), message)
    return message


def assert_paragraph(done: Result, message: str) -> None:
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    figures = re.compile(r"[\d.]+ [KMG]iB")  # memory and disks are not the same twice
    assert figures.sub("", done.stderr.splitlines()[-1]) == figures.sub("", f"error: {message}")
    assert message.endswith("."), "a sentence that says what to do"


def tree(directory: Path) -> dict[str, str]:
    """Every file and directory, with what is in it, but the run directories; what was half written has no business anywhere."""
    found = {}
    for path in sorted(directory.rglob("*")):
        assert "partial" not in path.name, f"left behind: {path}"
        if ".secateur" not in path.parts:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
    return found


def statistics(directory: Path) -> list[str]:
    """Names of the statistics kept in the run directories beside an output."""
    return sorted(path.name for path in (directory / ".secateur").glob("*/layer-*.safetensors"))


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; a field that is Ellipsis leaves."""
    body = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in body.items() if value is not ...}))
