# SPDX-License-Identifier: Apache-2.0
"""Generated pages of docs/reference, and the figures, say what the code says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import figures  # noqa: E402
import profile_reference  # noqa: E402
import reference  # noqa: E402
import training_reference  # noqa: E402

PAGES = {f"reference/{name}": text for name, text in reference.pages().items()}
PAGES |= {"reference/profile.md": profile_reference.render(), "reference/training.md": training_reference.render()}
PAGES |= {f"images/{name}": text for name, text in figures.figures().items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_code_says(name: str, pytestconfig: pytest.Config):
    page = ROOT / "docs" / name
    if pytestconfig.getoption("--write-docs"):
        page.write_text(PAGES[name], encoding="utf-8")
    assert page.read_text(encoding="utf-8") == PAGES[name], f"pytest {Path(__file__).name} --write-docs writes it again"
