# SPDX-License-Identifier: Apache-2.0
"""Robots that are commanded by tool poses: what the controller makes of reach, and their untrained policy."""

from __future__ import annotations

import numpy as np
import pytest

from xvla_ros.control.controller import RobotController
from xvla_ros.control.pilot import Pilot
from xvla_ros.control.policy_source import load_policy
from xvla_ros.control.state import HOLDING, LIMIT, RUNNING
from xvla_ros.control.timeline import waypoint_times
from xvla_ros.errors import SetupError
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.actions import Decoder, StateEncoder
from xvla_ros.types import ActionChunk, Observation

from .conftest import HandClock, standing

S = 1_000_000_000
NEUTRAL = np.array([-0.13, -0.76, 0.44, -0.02, 1.76, -0.16, 0.037])


def widowx(speed: float = 1.0) -> Profile:
    raw = load_profile("widowx")["widowx"].to_mapping()
    raw["safety"]["speed"] = speed
    raw["tools"]["arm"]["workspace_max"] = [2.0, 2.0, 2.0]
    return Profile.from_mapping("widowx", raw)


def chunk(profile: Profile, clock: HandClock, ways: list[float]) -> ActionChunk:
    """Waypoints along x, each so many m ahead of where the arm stands."""
    actions = np.tile(StateEncoder(profile).state(NEUTRAL), (len(ways), 1))
    actions[:, 0] += ways
    times = profile.policy.waypoint_dt * (1 + np.arange(len(ways)))
    return ActionChunk("widowx", 0, "ee6d", "go", clock.ros_ns(), times, actions.astype(np.float32), 1.0, 0)


class Arm:
    """A WidowX from messages to windows, that goes where it is sent as far as what it holds lets its jaw."""

    def __init__(self, profile: Profile) -> None:
        self.clock = HandClock()
        self.pilot: Pilot[np.ndarray] = Pilot(profile, self.clock, lambda raw, _: raw, "go")
        self.pilot.start()
        self.joints, self.held_at, self.commanded = NEUTRAL, 0.0, NEUTRAL
        self.run(1.0)

    def run(self, seconds: float, *, sees: bool = True) -> None:
        names = [joint.name for joint in self.pilot.profile.joints.ordered]
        for _ in range(round(seconds * 30)):
            self.clock.advance(1 / 30)
            if sees:
                self.pilot.add_image("front", self.clock.ros_ns(), np.zeros((8, 8, 3), np.uint8))
            self.pilot.add_joints("/wx250s/joint_states", self.clock.ros_ns(), names, self.joints)
            window = self.pilot.tick()
            if window is not None:
                self.commanded = window.position_at(self.clock.ros_ns())
                self.joints = np.append(self.commanded[:6], max(self.commanded[6], self.held_at))

    def stays(self, *gripper: float, inference: float = 0.2) -> None:
        """Carry out a chunk that leaves the tool where it is, its waypoints divided among values of the gripper."""
        request = self.pilot.observe()
        assert request is not None
        self.run(inference)
        actions = np.tile(request.observation.state, (30, 1))
        actions[:, 9] = np.repeat(gripper, 30 // len(gripper))
        assert self.pilot.deliver(request, ActionChunk.of(request.observation, actions, 1.0))


OPEN, BETWEEN, CLOSED = 0.0, 0.65, 1.0  # channel of the gripper of a WidowX; between, it is to stay as it was


@pytest.mark.parametrize(("first", "then"), [(OPEN, CLOSED), (CLOSED, OPEN)])
@pytest.mark.parametrize("held_by", ["a camera", "a stop", "a stop that no tick sees", "time", "nothing"])
def test_a_gripper_is_left_as_it_was_commanded_last_not_as_an_interrupted_chunk_would_have(
    first: float, then: float, held_by: str
):
    arm = Arm(widowx())
    gripper = arm.pilot.profile.tools["arm"].gripper
    arm.held_at = 0.03  # m between the fingers: nearer to open
    arm.stays(first)
    arm.run(1.5)
    arm.stays(first, then)  # 2.5 s later
    arm.run(1.0)
    if held_by == "a camera":
        arm.run(4.0, sees=False)
    elif held_by == "time":
        arm.clock.ros += 2 * S
    elif held_by != "nothing":
        arm.pilot.controller.latch_stop("estop", "")
        arm.run(4.0 if held_by == "a stop" else 0.0)
        arm.pilot.controller.clear_stop()
    arm.run(0.0 if held_by == "nothing" else 1.0)
    arm.stays(BETWEEN)
    arm.run(1.5)
    expected = gripper.open_position if first == OPEN else gripper.closed_position
    assert arm.commanded[6] == pytest.approx(expected, abs=2e-4)


def test_a_gripper_of_a_chunk_that_was_put_off_is_left_as_far_as_that_has_come():
    """Asked for at rest, a chunk counts from its arrival."""
    arm = Arm(widowx())
    arm.stays(OPEN, CLOSED, inference=1.8)
    arm.run(2.0)
    assert arm.pilot.controller.shift > S
    arm.stays(BETWEEN)
    arm.run(1.0)
    assert arm.commanded[6] == pytest.approx(arm.pilot.profile.tools["arm"].gripper.open_position, abs=2e-4)


def test_a_gripper_of_a_chunk_that_never_began_was_not_commanded():
    arm = Arm(widowx())
    arm.stays(OPEN)
    arm.run(7.0)
    arm.pilot.controller.latch_stop("estop", "")
    arm.run(1.0)
    arm.pilot.controller.clear_stop()
    arm.run(1.0)
    arm.stays(CLOSED)
    arm.pilot.controller.latch_stop("estop", "")
    arm.run(1.0)
    arm.pilot.controller.clear_stop()
    arm.stays(BETWEEN)
    arm.run(1.0)
    assert arm.commanded[6] == pytest.approx(arm.pilot.profile.tools["arm"].gripper.open_position, abs=2e-4)


def test_a_share_of_the_speed_is_the_same_path_of_the_joints_where_they_lag_behind_the_tool():
    paths = []
    for speed in (1.0, 0.1):
        arm = Arm(widowx(speed))
        request = arm.pilot.observe()
        assert request is not None
        actions = np.tile(request.observation.state, (30, 1))
        actions[:, 0] += np.repeat([0.15, 0.0, 0.15], 10)  # m, at once
        assert arm.pilot.deliver(request, ActionChunk.of(request.observation, actions, 1.0))
        assert arm.pilot.chunk is not None and arm.pilot.status.limited_points > 0
        due = waypoint_times(arm.pilot.chunk)
        planned = arm.pilot.controller.planned(due)
        assert planned is not None
        assert np.diff(due) == pytest.approx(arm.pilot.profile.policy.waypoint_dt / speed * S, abs=1e3)
        paths.append(planned)
    np.testing.assert_allclose(*paths, atol=1e-4)
    for waypoint, joints in zip(due[:12], paths[1][:12], strict=True):
        arm.run((waypoint - arm.clock.ros_ns()) / S)
        np.testing.assert_allclose(arm.commanded, joints, atol=0.05)


def test_a_chunk_out_of_reach_holds_for_the_limit_and_the_next_goes_on():
    profile, clock = widowx(), HandClock()
    controller, decoder = RobotController(profile, clock), Decoder(profile)
    controller.start()
    assert not controller.accept(decoder.decode(chunk(profile, clock, [1.0] * 10), NEUTRAL), controller.ask())
    controller.tick(standing(NEUTRAL, clock.ros_ns()), None)
    assert (controller.status.state, controller.status.reason) == (HOLDING, LIMIT)
    assert "tool 'arm' cannot reach any of 10 waypoints" in controller.status.detail
    clock.advance(0.1)
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
