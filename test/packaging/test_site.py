# SPDX-License-Identifier: Apache-2.0
"""The documentation site is built strictly: every page has its place, every link and anchor leads somewhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the documentation site needs the extra docs")
pytest.importorskip("material", reason="the documentation site needs the extra docs")

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "test" / "evaluation"))

from browser import NARROW, WIDE, Browser, needs_axe  # noqa: E402

REMOTE = ("https://fonts.", "https://unpkg.", "https://cdn.")


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(folder),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr  # strict: a warning ends it with 1
    return folder


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served on this machine: its search does not work from disk."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_site_has_its_pages_and_loads_nothing_from_elsewhere(site: Path):
    pages = {page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert {"index.html", "CHANGELOG.html", "reference/api.html", "tutorial/first-film.html"} <= pages.keys()
    assert 'id="xvla_ros.control.policy_source.load_policy"' in pages["reference/api.html"]
    assert "msg/ActionChunk.msg" in pages["reference/topics.html"] and (site / "msg" / "ActionChunk.msg").is_file()
    assert not [name for name, text in pages.items() if any(host in text for host in REMOTE)]


@needs_axe
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_browser_finds_nothing_wrong_and_nothing_too_wide(width: int, address: str, tmp_path: Path):
    with Browser(tmp_path) as browser:
        browser.resize(width)
        for page in (
            "index.html",
            "how-to/run-on-your-robot.html",
            "reference/api.html",
            "explanation/controller.html",
        ):
            browser.open(f"{address}/{page}")
            browser.wait("document.querySelector('[data-md-component=search][aria-label]') !== null")  # site.js has run
            assert browser.violations() == [] and browser.too_wide() <= 0, page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x](no-such-page.md)", "no-such-page.md"),
        ("[x](../CONTRIBUTING.md#no-such-heading)", "no-such-heading"),
        ("[x](../msg/NoSuch.msg)", "expected a file of the repository"),
        ("", "not included in the"),
    ],
)
def test_what_leads_nowhere_fails_the_build(text: str, said: str, tmp_path: Path):
    docs = tmp_path / "docs"
    for folder in (ROOT / "docs").iterdir():
        (docs / folder.name).parent.mkdir(exist_ok=True)
        (docs / folder.name).symlink_to(folder)
    page = docs / "reliability.md"
    page.unlink()
    page.write_text(f"# Reliability\n\n{text}\n", encoding="utf-8")
    (docs / "more.md").write_text("# A page without a place in the navigation", encoding="utf-8")
    lines = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("docs_dir: docs", f"docs_dir: {docs}")
    config = tmp_path / "mkdocs.yml"
    config.write_text(lines.replace("tools/site_pages.py", str(ROOT / "tools" / "site_pages.py")), encoding="utf-8")
    done = build(tmp_path / "site", config)
    assert done.returncode != 0 and said in done.stderr
