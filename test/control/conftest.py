# SPDX-License-Identifier: Apache-2.0
"""A small robot and a clock that tests set by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from xvla_ros.observation.measured import MeasuredJoints
from xvla_ros.robots.profile import Profile

SECOND = 1_000_000_000
JOINTS = ("pan", "lift")


def profile_of(name="twin", **changes):
    """A robot of two joints; ``changes`` are dotted settings with ``__`` for the dot."""
    tree = {
        "schema_version": 1,
        "policy": {
            "action_mode": "auto",
            "domain_id": 3,
            "waypoint_dt": 0.1,
            "first_waypoint_offset": 0.1,
            "image_pipeline": "letterbox",
        },
        "cameras": {"slots": ["front"], "front": {"topic": "/front"}},
        "joints": {
            "policy_order": list(JOINTS),
            **{
                joint: {
                    "topic": "/joint_states",
                    "name": joint,
                    "lower": -1.0,
                    "upper": 1.0,
                    "max_velocity": 2.0,
                    "max_acceleration": 10.0,
                }
                for joint in JOINTS
            },
        },
        "commands": {"interface": "joint_trajectory", "groups": ["arm"], "arm": {"topic": "/arm", "joints": JOINTS}},
        "timing": {
            "command_rate": 30.0,
            "lead": 0.05,
            "lookahead": 0.5,
            "inference_timeout": 2.0,
            "clock_timeout": 1.0,
        },
        "smoothing": {"execute": 0.5},
    }
    for path, value in changes.items():
        *sections, last = path.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return Profile.from_mapping(name, tree)


@dataclass
class HandClock:
    """Both clocks, moved by the test."""

    ros: int = 100 * SECOND
    steady: float = 5.0

    def ros_ns(self):
        return self.ros

    def steady_s(self):
        return self.steady

    def advance(self, seconds, *, ros=True):
        self.steady += seconds
        if ros:
            self.ros += round(seconds * SECOND)


def standing(positions, stamp, still_for=1.0):
    """What is measured of an arm that has stood still for so long, s."""
    return MeasuredJoints(
        stamp, np.asarray(positions, float), np.zeros(len(positions)), np.full(len(positions), still_for)
    )


@pytest.fixture
def make_profile():
    return profile_of


@pytest.fixture
def profile():
    return profile_of()


@pytest.fixture
def clock():
    return HandClock()
