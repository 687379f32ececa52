# SPDX-License-Identifier: Apache-2.0
"""Every promise names a test that is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_tests_that_are_there():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    promises, _, _ = text.partition("## Fuzzing")  # what comes after are figures
    rows = [line for line in promises.splitlines() if line.startswith("|") and not re.match(r"\|(---| promise )", line)]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            defined = {
                each.name
                for each in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
                if isinstance(each, ast.FunctionDef)
            }
            assert name in defined, f"{file} has no {name}"
