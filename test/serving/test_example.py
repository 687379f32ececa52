# SPDX-License-Identifier: Apache-2.0
"""The example runs, and says what it got."""

import subprocess
import sys
from pathlib import Path

from fuzz import at_once

EXAMPLE = Path(__file__).parents[2] / "examples" / "ask_server.py"


def test_the_example_gets_a_chunk(served, policy, monkeypatch):
    # its patience is a user's, and the machine may be busy
    monkeypatch.setattr(policy, "predict", at_once(policy))
    ran = subprocess.run([sys.executable, EXAMPLE, served.url], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert first == "random weights ['front', 'left_wrist', 'right_wrist'] 12"
    assert second.startswith(f"({policy.chunk_size}, 12) 0.033 … ")
