"""`secateur prune --push-to-hub`: through huggingface_hub itself, to a hub of our own on this machine."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.settings import PruneSettings
from tests.recipes.tiny_checkpoint import text_beside

NAME = "me/smaller"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a client that uploads small files asks."""

    made: dict[str, Any] | None = None
    files: dict[str, bytes]
    exists: str | None = None
    """The visibility of a repository that is there before."""
    fails: bool = False
    card: str = ""

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            known = self.headers.get("authorization") == "Bearer good"
            self.answer({"name": "me", "auth": {}} if known else {"error": "Invalid user token."}, 200 if known else 401)
        elif self.path.startswith(f"/api/models/{NAME}"):
            visible = self.hub.exists or (self.hub.made or {}).get("visibility") or "public"
            self.answer({"id": NAME, "private": visible == "private", "siblings": []})
        else:
            self.answer({"error": "Entry not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/api/repos/create":
            self.hub.made = json.loads(body)
            taken = self.hub.exists is not None
            self.answer(
                {"url": f"{self.address}/{NAME}", "error": "You already created this model repo"}, 409 if taken else 200
            )
        elif self.path == "/api/validate-yaml":
            self.hub.card = json.loads(body)["content"]
            self.answer({"errors": [], "warnings": []})
        elif self.path.startswith(f"/api/models/{NAME}/preupload/main"):
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif self.path.startswith(f"/api/models/{NAME}/commit/main") and not self.hub.fails:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitUrl": f"{self.address}/{NAME}/commit/0", "commitOid": "0", "hookOutput": ""})
        else:
            self.answer({"error": "the disk of the hub is full"}, 507)

    @property
    def hub(self) -> Any:
        return type(self)

    @property
    def address(self) -> str:
        return f"http://{self.headers['host']}"

    def answer(self, body: Any, code: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    kind = type("ThisHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    yield kind, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def prune(address: str, model: Path, out: Path, *words: str, token: str | None = "good") -> subprocess.CompletedProcess[str]:
    given = {"HF_ENDPOINT": address, "HF_HOME": str(out.parent / "hf"), **({"HF_TOKEN": token} if token else {})}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, "-m", "secateur", "prune", str(model), "--out", str(out), "--ratio", "0.3", "--method", "magnitude",
         "--compensate", "none", "--calibration", str(text_beside(model)),
         "--eval", "none", "--samples", "2", "--seq-len", "16", "--json", *words],
        capture_output=True, text=True, env={**kept, **given}, check=False,
    )  # fmt: skip


def test_everything_in_the_directory_is_published(hub: tuple[type[Hub], str], checkpoint: Any, tmp_path: Path) -> None:
    kind, address = hub
    out = tmp_path / "out"
    done = prune(address, checkpoint("llama"), out, "--push-to-hub", NAME, "--private")
    assert done.returncode == 0, done.stderr
    assert kind.made is not None and (kind.made["name"], kind.made["organization"]) == ("smaller", "me")
    assert kind.made["visibility"] == "private"
    assert kind.files == {path.name: path.read_bytes() for path in out.iterdir()} and "model.safetensors" in kind.files
    assert json.loads(done.stdout)["published"] == f"{address}/{NAME}"
    assert kind.card == (out / "README.md").read_text() and NAME not in kind.card  # where it went is not how it was made


def test_nothing_is_published_unasked(hub: tuple[type[Hub], str], checkpoint: Any, tmp_path: Path) -> None:
    kind, address = hub
    done = prune(address, checkpoint("llama"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["published"] is None and kind.made is None


def test_into_a_repository_that_is_there(hub: tuple[type[Hub], str], checkpoint: Any, tmp_path: Path) -> None:
    kind, address = hub
    kind.exists = "public"
    done = prune(address, checkpoint("llama"), tmp_path / "out", "--push-to-hub", NAME)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in kind.files


@pytest.mark.parametrize(
    ("words", "token", "says"),
    [
        (["--push-to-hub", "a/b/c"], "good", ["'a/b/c'", "Give OWNER/NAME"]),
        (["--push-to-hub", NAME], None, ["no token", "hf auth login"]),
        (["--push-to-hub", NAME], "bad", ["does not say who you are"]),
        (["--private"], "good", ["no effect without push_to_hub"]),
    ],
)  # fmt: skip
def test_refused_before_any_work(
    words: list[str], token: str | None, says: list[str], hub: tuple[type[Hub], str], checkpoint: Any, tmp_path: Path
) -> None:
    kind, address = hub
    done = prune(address, checkpoint("llama"), tmp_path / "out", *words, token=token)
    assert done.returncode == 2
    assert all(part in json.loads(done.stdout)["error"] for part in says), done.stdout
    assert kind.made is None and not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["full", "public"])
def test_what_the_hub_refuses_is_still_on_disk(how: str, hub: tuple[type[Hub], str], checkpoint: Any, tmp_path: Path) -> None:
    kind, address = hub
    kind.fails, kind.exists = how == "full", "public" if how == "public" else None
    out = tmp_path / "out"
    done = prune(address, checkpoint("llama"), out, "--push-to-hub", NAME, *(["--private"] if how == "public" else []))
    assert done.returncode == 2
    problem = json.loads(done.stdout)["error"]
    assert f"hf upload {NAME} {out}" in problem and ("everybody can read it" in problem) == (how == "public"), problem
    assert (out / "model.safetensors").is_file() and not kind.files


def test_private_alone_is_refused() -> None:
    with pytest.raises(UserError, match="private = True has no effect"):
        PruneSettings(model="m", out="o", ratio=0.3, private=True)
