# SPDX-License-Identifier: Apache-2.0
"""Generated pages of docs/reference say what the code says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import profile_reference  # noqa: E402
import reference  # noqa: E402
import training_reference  # noqa: E402

PAGES = reference.pages() | {"profile.md": profile_reference.render(), "training.md": training_reference.render()}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_code_says(name: str, pytestconfig: pytest.Config):
    page = ROOT / "docs" / "reference" / name
    if pytestconfig.getoption("--write-docs"):
        page.write_text(PAGES[name], encoding="utf-8")
    assert page.read_text(encoding="utf-8") == PAGES[name], f"pytest {Path(__file__).name} --write-docs writes it anew"
