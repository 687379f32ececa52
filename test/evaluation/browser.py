# SPDX-License-Identifier: Apache-2.0
"""Pages as a browser shows them, and what axe-core says of them: headless Chromium, one page a process.

``make browser`` brings both; without them the tests that need them are skipped.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(os.environ.get("XVLA_AXE", Path(sys.prefix, "axe/node_modules/axe-core"))) / "axe.min.js"
DEADLINE = 240.0  # ends what hangs
WIDE, NARROW = 1280, 390  # px: a desktop, a phone

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make browser")
needs_axe = pytest.mark.skipif(CHROMIUM is None or not AXE.is_file(), reason="needs Chromium and axe: make browser")

RUN_AXE = """
axe.run(document, {resultTypes: ["violations"]}).then(
  found => found.violations.map(each => [each.id, each.help, each.nodes.map(node => node.html.slice(0, 160))]),
  error => [["axe", String(error), []]]
).then(found => {
  const said = document.createElement("pre");
  said.id = "axe-said";
  said.textContent = JSON.stringify([found, document.documentElement.scrollWidth, innerWidth]);
  document.body.append(said);
});
"""


def chromium(*arguments: str, width: int, height: int = 1600) -> str:
    """Run it on one page; what it prints."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        f"--window-size={width},{height}", "--virtual-time-budget=20000", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    return done.stdout


def look(page: Path, width: int, folder: Path) -> tuple[list[Any], int]:
    """What axe-core finds wrong with a page at a width in px, and how many px the page is wider than its window.

    A window of Chromium is at least 500 px wide; the page stands in a frame of the width.
    """
    text = page.read_text(encoding="utf-8").replace(
        "</body>", f"<script>{AXE.read_text(encoding='utf-8')}</script><script>{RUN_AXE}</script></body>"
    )
    frame = folder / f"{page.stem}-{width}.html"
    frame.write_text(
        f'<iframe id=page style="width:{width}px;height:1600px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        "<script>const wait = setInterval(() => {"
        'const said = document.getElementById("page").contentDocument.getElementById("axe-said");'
        "if (said) { clearInterval(wait); document.body.textContent = 'axe-said' + said.textContent + 'axe-end'; }"
        "}, 50);</script>",
        encoding="utf-8",
    )
    dumped = html.unescape(chromium("--dump-dom", frame.as_uri(), width=1400))
    said = re.search("<body>axe-said(.*)axe-end", dumped, re.DOTALL)
    assert said is not None, dumped[-2000:]
    found, needed, there = json.loads(said[1])
    return found, needed - there


def screenshot(page: Path, width: int, file: Path, height: int = 1600) -> None:
    """Write a picture of a page."""
    chromium(f"--screenshot={file}", page.as_uri(), width=width, height=height)
