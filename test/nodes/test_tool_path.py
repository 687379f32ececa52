# SPDX-License-Identifier: Apache-2.0
"""A straight tool path of 20 cm through the whole stack: node → topics → controller → physics, for every shipped arm.

The policy is scripted, as no small network draws a straight line; the rest is real, ``bench/tool_path.py`` says what.
Held to 5 mm and 2°: the distance of the measured tool from the line, its distance from where the script had it one
constant lag before, and its rotation (of an SO-101 with five joints the approach axis). Measured is forward kinematics
of the joint states.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("pinocchio", reason="needs the kinematics extra")
pytest.importorskip("mujoco", reason="needs the sim extra")

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import tool_path

from xvla_ros.control.state import ControlStatus
from xvla_ros.robots import load_profile
from xvla_ros.robots.kinematics import Poses


@pytest.mark.parametrize("robot", tool_path.ROBOTS)
def test_a_straight_line_of_20_cm(robot):
    drawn = tool_path.draw(robot)
    assert len(drawn) == len(tool_path.LINES[robot])
    for arm in drawn:
        assert arm.covered_mm > 199.0, arm
        assert arm.cross_max_mm < 5.0 and arm.tracking_max_mm < 5.0 and arm.rotation_max_deg < 2.0, arm
        assert arm.lag_ms < 100.0 and arm.samples > 150 and arm.chunks >= 2, arm
        assert arm.holds == 0 and arm.refused == 0, arm


@pytest.fixture(scope="module")
def line():
    return tool_path.lines_of(load_profile("widowx")["widowx"])["arm"]


def perfect(line, lag=0.0):
    """Stamps and joints of an arm that does exactly what the script says, ``lag`` s later."""
    times = np.arange(tool_path.APPROACH_S, tool_path.APPROACH_S + tool_path.LINE_S + tool_path.REST_S, 0.02)
    start = Poses(line.begin, line.rotation)
    targets, joints = line.poses(times - lag, start), []
    for i in range(len(times)):
        found = line.inverse.solve(targets[i], joints[-1]) if joints else line.inverse.solve_cold(targets[i])
        joints.append(found.positions)
    return np.rint(times * 1e9).astype(np.int64), np.array(joints)


def test_the_measure_finds_what_is_wrong(line):
    """Lag, a bent wrist, a line beside the line, and one that stops half way."""
    stamps, joints = perfect(line, lag=0.05)

    def seen(joints):
        return tool_path.analyse("arm", line, stamps, joints, 0, ControlStatus())

    good = seen(joints)
    assert good.cross_max_mm < 0.01 and good.tracking_max_mm < 0.1 and good.rotation_max_deg < 0.01
    assert good.lag_ms == pytest.approx(50.0, abs=1.0) and good.covered_mm == pytest.approx(200.0, abs=0.1)
    twisted, beside, stopped = joints.copy(), joints.copy(), joints.copy()
    twisted[100:110, 5] += np.radians(3.0)
    beside[100:110, 0] -= 0.03
    stopped[110:] = stopped[110]
    assert seen(twisted).rotation_max_deg == pytest.approx(3.0, abs=0.1)
    assert seen(beside).cross_max_mm > 3.0 and seen(beside).tracking_max_mm > 5.0
    assert seen(stopped).covered_mm < 150.0 and seen(stopped).tracking_max_mm > 20.0
