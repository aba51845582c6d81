"""A page in headless Chromium, in a frame of any width and colour scheme, and what can be seen of it there."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120

# Chromium's own window has a least width, which is more than a telephone's: a frame has none. What is asked for in `color-scheme` is
# what the page in the frame is told that its reader prefers.
WRAPPER = """<!doctype html><meta charset="utf-8"><title>wrapper</title>
<iframe style="border:0;width:{width}px;height:{height}px;color-scheme:{scheme}" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  try {{ document.getElementById("found").textContent = JSON.stringify(({look})(frame.contentDocument, frame.contentWindow)); }}
  catch (error) {{ document.getElementById("found").textContent = JSON.stringify({{"error": String(error)}}); }}
}});
</script>"""

LOOK = r"""(page, view) => {
  const root = page.documentElement, box = (e) => e.getBoundingClientRect();
  const channels = (c) => c.match(/[\d.]+/g).map(Number);
  const light = (c) => channels(c).slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const c = view.getComputedStyle(at).backgroundColor;
      if (channels(c).length < 4 || channels(c)[3] > 0.99) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const name = (e) => (e.textContent || "").trim().slice(0, 60);
  const found = {
    wide: root.scrollWidth, view: view.innerWidth, ground: view.getComputedStyle(page.body).backgroundColor,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches, outside: [], plots: [], escaped: [], touching: [], faint: [],
    small: [], clipped: [], loaded: view.performance.getEntriesByType("resource").map((r) => r.name),
  };
  for (const e of page.body.querySelectorAll("*")) {
    const scrolls = e.closest(".scroll");
    const shown = !scrolls && !e.closest("svg") && box(e).width;
    if (shown && box(e).right > view.innerWidth + 0.5) found.outside.push(e.tagName + " " + name(e));
    const bare = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (bare && !e.closest("svg") && box(e).width) {
      const style = view.getComputedStyle(e), ratio = contrast(style.color, behind(e));
      if (ratio < 4.5) found.faint.push([name(e), ratio]);
    }
    if (bare && shown && e.clientWidth && e.scrollWidth > e.clientWidth + 1) found.clipped.push(e.tagName + " " + name(e));
  }
  for (const svg of page.querySelectorAll("svg")) {
    const frame = box(svg), unit = frame.width / svg.viewBox.baseVal.width;
    const ink = [...svg.querySelectorAll("rect, circle, path, line")].filter((s) => box(s).width + box(s).height > 0).length;
    found.plots.push({label: svg.getAttribute("aria-label"), width: frame.width, height: frame.height, ink});
    const leaves = (b, by) => b.left < frame.left - by || b.right > frame.right + by || b.top < frame.top - by
      || b.bottom > frame.bottom + by;
    const texts = [...svg.querySelectorAll("text")].map((t) => [t, box(t)]);
    texts.forEach(([t, b], at) => {
      const style = view.getComputedStyle(t);
      if (leaves(b, 1)) found.escaped.push(name(t));
      if (parseFloat(style.fontSize) * unit < 9.5) found.small.push(name(t));
      if (!t.classList.contains("through") && contrast(style.fill, behind(svg)) < 4.5) found.faint.push([name(t), 0]);
      for (const [other, o] of texts.slice(at + 1)) {
        const x = Math.min(b.right, o.right) - Math.max(b.left, o.left);
        const y = Math.min(b.bottom, o.bottom) - Math.max(b.top, o.top);
        if (x > 1 && y > 3 * unit) found.touching.push([name(t), name(other)]);
      }
    });
    for (const s of svg.querySelectorAll("rect, circle, path, line")) {
      if (leaves(box(s), 2)) found.escaped.push(s.outerHTML.slice(0, 80));
    }
  }
  return found;
}"""


def chromium() -> str:
    """The browser's program; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: looked for " + ", ".join(NAMES) + " (Debian: apt-get install chromium)")
    return found


def seen(page: str, directory: Path, *, width: int, scheme: str, height: int = 900) -> dict[str, Any]:
    """What the script found on the page."""
    wrapper = directory / f"wrapper-{width}-{scheme}.html"
    wrapper.write_text(WRAPPER.format(width=width, height=height, scheme=scheme, page=html.escape(page, quote=True), look=LOOK))
    done = run("--dump-dom", "--virtual-time-budget=10000", wrapper.as_uri(), directory=directory)
    found = re.search(r'<pre id="found">(.*?)</pre>', done, re.DOTALL)
    assert found and found[1], f"the browser answered nothing: {done[:500]}"
    answer = json.loads(html.unescape(found[1]))
    assert "error" not in answer, answer
    return answer


def run(*arguments: str, directory: Path) -> str:
    """Chromium with a profile of its own, without network, and without a sandbox for root, whom it refuses one."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [
        chromium(), "--headless=new", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={directory / 'profile'}",
        "--window-size=1400,1000", *sandbox, *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
