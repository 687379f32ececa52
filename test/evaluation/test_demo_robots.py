# SPDX-License-Identifier: Apache-2.0
"""The demo of every arm beside the SO-101 pair, and of one that takes setpoints instead of trajectories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xvla_ros.control.policy_source import shipped_policy
from xvla_ros.evaluation.report.film import HEIGHT, WIDTH, read_frame
from xvla_ros.robots import load_profile

LIMIT = 300.0  # s, only ends a hang
DURATION = 2.0


@pytest.mark.parametrize("robot", ["widowx", "agibot", "so101", "so101_bimanual_forward"])
def test_a_demo_ends_with_film_and_report(robot: str, tmp_path: Path) -> None:
    profile = load_profile(robot)[robot]
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "xvla_ros",
            "demo",
            "--robot",
            robot,
            "--duration",
            f"{DURATION:g}",
            "--headless",
            "--output",
            str(tmp_path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["robot"], report["trained"]) == (robot, shipped_policy([profile]) is not None)
    assert report["duration"] == pytest.approx(DURATION, abs=0.3)
    assert report["chunks"] >= 1 and report["trajectories"] > 10  # how many depends on how busy the machine is
    assert set(report["joint_travel_rad"]) == set(profile.commands.groups)
    assert max(report["joint_travel_rad"].values()) > 0.05
    assert read_frame(tmp_path / "film.mp4", DURATION / 2).shape == (HEIGHT, WIDTH, 3)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(profile.joints.policy_order) + 2
    for log in (tmp_path / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(encoding="utf-8"), log
