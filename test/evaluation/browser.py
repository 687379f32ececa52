# SPDX-License-Identifier: Apache-2.0
"""Pages as a browser shows them, and what axe-core says of them: headless Chromium over its DevTools protocol.

``make browser`` brings Chromium and axe-core; without them the tests that need them are skipped.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import urlopen

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(os.environ.get("XVLA_AXE", Path(sys.prefix, "axe/node_modules/axe-core"))) / "axe.min.js"
DEADLINE = 240.0  # s, ends what hangs
WIDE, NARROW = 1280, 390  # px: a desktop, a phone

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make browser")
needs_axe = pytest.mark.skipif(CHROMIUM is None or not AXE.is_file(), reason="needs Chromium and axe: make browser")


class Browser:
    """One page of one Chromium.

    Args:
        profile: an empty folder for the browser's own files.
    """

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        assert CHROMIUM is not None
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
            "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = profile / "DevToolsActivePort"
        self.until(lambda: port.is_file() and len(port.read_text().splitlines()) == 2, "Chromium's port")
        with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list", timeout=DEADLINE) as answer:
            (page,) = (each for each in json.load(answer) if each["type"] == "page")
        self._opened = ExitStack()
        self._socket = self._opened.enter_context(
            connect(page["webSocketDebuggerUrl"], max_size=None, open_timeout=DEADLINE)
        )
        self._numbers = itertools.count(1)
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask Chromium for something; its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=DEADLINE))
            if said.get("id") == number:
                assert "error" not in said, said["error"]
                return dict(said["result"])

    def run(self, script: str) -> Any:
        """Run a script in the page; the value it comes to, awaited."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Go to a page, until it is loaded."""
        self.ask("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({address.split('#')[0]!r})")

    def wait(self, script: str) -> None:
        """Wait until a script comes to something true."""
        self.until(lambda: self.run(script), f"{script}; the page says: {script and self._text()}")

    def _text(self) -> str:
        return str(self.run("document.body ? document.body.innerText.slice(0, 400) : ''"))

    @staticmethod
    def until(condition: Any, what: str) -> None:
        """Wait until a condition holds."""
        ends = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < ends, what
            time.sleep(0.05)

    def resize(self, width: int, height: int = 1600) -> None:
        """Give the window a size in px."""
        phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page, PNG."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def violations(self) -> list[Any]:
        """What axe-core finds: rule, what it asks for, and where."""
        self.run(AXE.read_text(encoding="utf-8") + ";0")
        found = self.run(
            "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map("
            "each => [each.id, each.help, each.nodes.map(node => node.html.slice(0, 160))]))"
        )
        return list(found)

    def too_wide(self) -> int:
        """How many px the page is wider than its window."""
        return int(self.run("document.documentElement.scrollWidth - innerWidth"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
        self._process.terminate()
        self._process.wait(timeout=DEADLINE)
