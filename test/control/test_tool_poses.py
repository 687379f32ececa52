# SPDX-License-Identifier: Apache-2.0
"""Robots that are commanded by tool poses: what the controller makes of reach, and their untrained policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from xvla_ros.control.controller import RobotController
from xvla_ros.control.policy_source import load_policy
from xvla_ros.control.state import HOLDING, LIMIT, RUNNING
from xvla_ros.errors import SetupError
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.actions import Decoder, StateEncoder
from xvla_ros.types import ActionChunk, Observation

from .conftest import standing

S = 1_000_000_000
NEUTRAL = np.array([-0.13, -0.76, 0.44, -0.02, 1.76, -0.16, 0.037])


@dataclass
class HandClock:
    """A clock that a test sets."""

    now: float = 1000.0

    def ros_ns(self) -> int:
        return round(self.now * S)

    def steady_s(self) -> float:
        return self.now


def widowx() -> Profile:
    raw = load_profile("widowx")["widowx"].to_mapping()
    raw["tools"]["arm"]["workspace_max"] = [2.0, 2.0, 2.0]
    return Profile.from_mapping("widowx", raw)


def chunk(profile: Profile, clock: HandClock, ways: list[float]) -> ActionChunk:
    """Waypoints along x, each so many m ahead of where the arm stands."""
    actions = np.tile(StateEncoder(profile).state(NEUTRAL), (len(ways), 1))
    actions[:, 0] += ways
    times = profile.policy.waypoint_dt * (1 + np.arange(len(ways)))
    return ActionChunk("widowx", 0, "ee6d", "go", clock.ros_ns(), times, actions.astype(np.float32), 1.0, 0)


def test_a_chunk_out_of_reach_holds_for_the_limit_and_the_next_goes_on():
    profile, clock = widowx(), HandClock()
    controller, decoder = RobotController(profile, clock), Decoder(profile)
    controller.start()
    assert not controller.accept(decoder.decode(chunk(profile, clock, [1.0] * 10), NEUTRAL), controller.ask())
    controller.tick(standing(NEUTRAL, clock.ros_ns()), None)
    assert (controller.status.state, controller.status.reason) == (HOLDING, LIMIT)
    assert "tool 'arm' cannot reach any of 10 waypoints" in controller.status.detail
    clock.now += 0.1
    assert controller.wants_chunk()
    near = decoder.decode(chunk(profile, clock, [0.01] * 10), NEUTRAL)
    assert not near.out_of_reach().any() and controller.accept(near, controller.ask())
    controller.tick(standing(NEUTRAL, clock.ros_ns()), None)
    assert controller.status.state == RUNNING


def test_waypoints_out_of_reach_are_counted_and_the_arm_waits_there():
    profile, clock = widowx(), HandClock()
    controller = RobotController(profile, clock)
    controller.start()
    ways = [0.01, 0.02, 1.0, 1.0, 0.03, 0.02]
    trajectory = Decoder(profile).decode(chunk(profile, clock, ways), NEUTRAL)
    assert controller.accept(trajectory, controller.ask())
    assert controller.status.limited_points == 2
    second, fourth = trajectory.waypoints[[1, 3]]
    np.testing.assert_allclose(
        trajectory.positions[second : fourth + 1],
        np.tile(trajectory.positions[second], (fourth + 1 - second, 1)),
        atol=1e-4,
    )


@pytest.mark.parametrize("robot", ["widowx", "agibot"])
def test_an_untrained_policy_gives_poses_that_can_be_followed(robot: str):
    profile = load_profile(robot)[robot]
    policy = load_policy({robot: profile})
    home = np.array([(joint.lower + joint.upper) / 2 for joint in profile.joints.ordered])
    for tool in profile.tools.values():
        arm = [name for name in profile.joints.policy_order if name != tool.gripper.joint]
        chosen = [name for name in arm if robot == "widowx" or name.split("_")[0] == tool.gripper.joint.split("_")[0]]
        for name, value in zip(chosen, tool.home, strict=True):
            home[profile.joints.policy_order.index(name)] = value
    state = StateEncoder(profile).state(home).astype(np.float32)
    images = {slot: np.zeros((96, 96, 3), np.uint8) for slot in profile.cameras.slots}
    seen = Observation(profile.embodiment(), S, images, state, "move")
    answer = policy.predict([seen], seed=0)[0]
    trajectory = Decoder(profile).decode(answer, home)
    assert not trajectory.nothing_reached()
    assert np.abs(np.diff(trajectory.positions, axis=0)).max() > 1e-3


def test_a_robot_without_a_urdf_gets_no_untrained_policy():
    raw = load_profile("widowx")["widowx"].to_mapping()
    raw["tools"]["arm"]["urdf"] = ""
    with pytest.raises(SetupError, match=r"widowx: tools\.arm\.urdf is empty"):
        load_policy({"widowx": Profile.from_mapping("widowx", raw)})
