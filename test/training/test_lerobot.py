# SPDX-License-Identifier: Apache-2.0
"""What we train, each LeRobot runs, and the other way round; in environments that $XVLA_LEROBOT_PYTHON names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

PEERS = [each for each in os.environ.get("XVLA_LEROBOT_PYTHON", "").split(":") if each]
BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
@pytest.mark.skipif(not PEERS, reason="XVLA_LEROBOT_PYTHON names no interpreter with lerobot==0.4.4 or 0.6.1")
def test_lerobot_and_we_answer_alike_from_each_others_checkpoints(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    from lerobot_parity import LIMIT, compare

    rows = compare(PEERS, trained, tmp_path)
    assert len(rows) == len(PEERS) * (2 + len(PEERS))
    assert all(row["largest action"] > 0 and row["relative"] < LIMIT for row in rows)
