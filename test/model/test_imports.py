# SPDX-License-Identifier: Apache-2.0
"""Large imports with the garbage collector out of the way."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from xvla_ros.model.imports import collector_paused


def test_collector_is_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError), collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        _ = 1 / 0
    assert gc.isenabled()


def test_only_the_first_block_keeps() -> None:
    # in a process of its own: what is kept here would be kept for all tests behind
    script = (
        "import gc\n"
        "from xvla_ros.model.imports import kept_for_good\n"
        "with kept_for_good():\n"
        "    first = [[]]\n"
        "kept = gc.get_freeze_count()\n"
        "with kept_for_good():\n"
        "    second = [[]]\n"
        "print(kept > 1000, gc.isenabled(), any(each is first for each in gc.get_objects()),\n"
        "      any(each is second for each in gc.get_objects()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True", "False", "True"]
