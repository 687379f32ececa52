# SPDX-License-Identifier: Apache-2.0
"""What properties are tried with depends on the test alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

providers = pytest.importorskip("hypothesis.internal.conjecture.providers", reason="draws no constants")


def drawn() -> list[list[int]]:
    """Return what a property of lists of numbers is tried with."""
    found: list[list[int]] = []

    @given(st.lists(st.integers()))
    def try_with(numbers: list[int]) -> None:
        found.append(numbers)

    try_with()
    return found


@pytest.mark.skipif(not settings.default.derandomize, reason="draws anew")
@pytest.mark.skipif(
    not hasattr(providers, "is_local_module_file"), reason="another Hypothesis, which conftest.py leaves"
)
def test_what_is_drawn_is_the_same_whatever_was_imported_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "numbers_elsewhere.py"
    file.write_text("\n".join(f"NUMBER_{index} = {1_000_003 * index}" for index in range(1, 200)))
    before = drawn()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)
    assert drawn() == before
