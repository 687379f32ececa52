# SPDX-License-Identifier: Apache-2.0
"""What we train, LeRobot runs, and the other way round; in an environment of its own, named by $XVLA_LEROBOT_PYTHON."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

PEER = os.environ.get("XVLA_LEROBOT_PYTHON", "")
BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
@pytest.mark.skipif(not PEER, reason="XVLA_LEROBOT_PYTHON names no interpreter with lerobot==0.4.4")
def test_lerobot_and_we_answer_alike_from_each_others_checkpoints(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    from lerobot_parity import LIMIT, compare

    rows = compare(PEER, trained, tmp_path)
    assert [row["checkpoint"] for row in rows] == ["ours, loaded by LeRobot", "LeRobot's, loaded here"]
    assert all(row["largest action"] > 0 and row["relative"] < LIMIT for row in rows)
