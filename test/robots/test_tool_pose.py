# SPDX-License-Identifier: Apache-2.0
"""The policy's tool-pose vectors: frames, rotation layouts, grippers, and the way from a chunk to joints."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from xvla_ros.errors import KinematicsError
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.actions import Decoder, StateEncoder, Trajectory, resample
from xvla_ros.robots.joints import gripper_joints
from xvla_ros.robots.kinematics import RobotDescription, shipped_description
from xvla_ros.robots.kinematics.chain import Poses
from xvla_ros.robots.kinematics.inverse import HELD, REACHED
from xvla_ros.robots.rotations import (
    COLUMNS,
    INTERLEAVED,
    ROT6D_LAYOUTS,
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rot6d,
    rot6d_misfit,
    rot6d_to_matrix,
    rpy_to_matrix,
)
from xvla_ros.robots.tool_pose import (
    gripper_action,
    gripper_positions,
    gripper_state,
    join,
    keep_inside,
    policy_turn,
    split,
)
from xvla_ros.robots.tools import ToolArm, Workspace, tool_arms
from xvla_ros.types import ActionChunk

Floats = NDArray[np.float64]

STAMP = 1_700_000_000_123_456_789
ROBOTS = ("widowx", "agibot")
NEUTRAL = [-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401]
axis_angles = hnp.arrays(np.float64, 3, elements=st.floats(-2.0, 2.0))


def changed(robot: str, **tool: Any) -> Profile:
    """A shipped profile with settings of all its tools changed."""
    raw = load_profile(robot)[robot].to_mapping()
    for name in raw["tools"]["order"]:
        raw["tools"][name].update(tool)
    return Profile.from_mapping(robot, raw)


@cache
def profile(robot: str) -> Profile:
    return load_profile(robot)[robot]


@cache
def arms(robot: str) -> dict[str, ToolArm]:
    return tool_arms(profile(robot))


def home(robot: str) -> Floats:
    """Joint positions [J] with every arm at home and every gripper open."""
    joints = np.zeros(len(profile(robot).joints.policy_order))
    for arm in arms(robot).values():
        joints[arm.columns] = arm.inverse.home
        joints[arm.gripper] = arm.tool.gripper.open_position
    return joints


def make_chunk(robot: str, actions: Floats) -> ActionChunk:
    policy = profile(robot).policy
    times = policy.waypoint_dt * (1 + np.arange(len(actions)))
    values = actions.astype(np.float32)
    return ActionChunk(robot, policy.domain_id, policy.action_mode, "go", STAMP, times, values, 1.0, 0)


def standing(robot: str, count: int = 30) -> Floats:
    """Actions [count, 20] that leave every tool at home with its gripper open."""
    actions = np.tile(StateEncoder(profile(robot), arms(robot)).state(home(robot)), (count, 1))
    for i, arm in enumerate(arms(robot).values()):
        actions[:, 10 * i + 9] = arm.tool.gripper.open_value
    return actions


@given(axis_angles, st.sampled_from(ROT6D_LAYOUTS))
def test_rotations_round_trip_in_both_layouts(axis_angle: Floats, layout: str):
    matrix = axis_angle_to_matrix(axis_angle)
    rot6d = matrix_to_rot6d(matrix, layout)
    np.testing.assert_allclose(rot6d_to_matrix(rot6d, layout), matrix, atol=1e-5)
    assert rot6d_misfit(rot6d, layout) < 1e-9


@pytest.mark.parametrize(("written", "read"), [(COLUMNS, INTERLEAVED), (INTERLEAVED, COLUMNS)])
def test_the_other_layout_is_detected_where_it_is_degenerate(written: str, read: str):
    identity = matrix_to_rot6d(np.eye(3), written)
    assert rot6d_misfit(identity, read) >= 1.0
    with pytest.raises(ValueError, match="zero or parallel; check the layout"):
        rot6d_to_matrix(identity, read)


@pytest.mark.parametrize("layout", ROT6D_LAYOUTS)
def test_a_chunk_in_the_other_layout_is_refused_by_name(layout: str):
    raw = profile("widowx").to_mapping()
    raw["policy"]["rot6d"] = COLUMNS if layout == INTERLEAVED else INTERLEAVED
    other = Profile.from_mapping("widowx", raw)
    turns = np.random.default_rng(0).normal(size=(30, 3))
    noise = np.random.default_rng(1).normal(scale=0.01, size=(30, 6))
    actions = np.zeros((30, 20))
    actions[:, 3:9] = matrix_to_rot6d(axis_angle_to_matrix(turns), layout) + noise
    with pytest.raises(ValueError, match=rf"tool 'arm' are not valid in the layout \w+, but valid in {layout}"):
        split(actions, other)


def test_rpy_is_about_fixed_axes():
    x, y, z = (rpy_to_matrix(np.eye(3)[axis] * angle) for axis, angle in enumerate((0.3, -0.4, 0.5)))
    np.testing.assert_allclose(rpy_to_matrix([0.3, -0.4, 0.5]), z @ y @ x, atol=1e-12)


def test_widowx_speaks_the_conventions_of_bridge():
    """R_state = R_ee · Dᵀ with D = Ry(90°): at Bridge's neutral pose the policy sees nearly no rotation."""
    joints = np.array([*NEUTRAL, 0.037])
    state = StateEncoder(profile("widowx")).state(joints)
    turn = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    pose = arms("widowx")["arm"].chain.poses(NEUTRAL)
    np.testing.assert_allclose(state[:3], [0.120201, -0.019085, 0.246696], atol=1e-5)
    np.testing.assert_allclose(state[3:9], (pose.rotations @ turn.T)[:, :2].reshape(6), atol=1e-12)
    np.testing.assert_allclose(state[3:9], [1, 0, 0, 1, 0, 0], atol=0.15)
    np.testing.assert_array_equal(state[9:], np.zeros(11))  # open, and no second arm
    assert StateEncoder(profile("widowx")).state([*NEUTRAL, 0.015])[9] == 1.0


def test_agibot_state_holds_both_flanges_and_openings():
    state = StateEncoder(profile("agibot"), arms("agibot")).state(home("agibot"))
    np.testing.assert_allclose(state[[0, 1, 2, 10, 11, 12]], [0.344, 0.300, 0.039, 0.344, -0.302, 0.038], atol=5e-4)
    np.testing.assert_array_equal(state[[9, 19]], [1.0, 1.0])
    assert profile("agibot").channels[10:12] == ("right.x", "right.y")
    assert profile("widowx").channels[9:11] == ("arm.gripper", "unused_10")


@pytest.mark.parametrize("robot", ROBOTS)
@given(data=st.data())
def test_split_undoes_join(robot: str, data: st.DataObject):
    count = len(profile(robot).joints.policy_order)
    share = data.draw(hnp.arrays(np.float64, (3, count), elements=st.floats(0.0, 1.0)))
    joints = np.array([[joint.lower, joint.upper] for joint in profile(robot).joints.ordered])
    positions = joints[:, 0] + share * (joints[:, 1] - joints[:, 0])
    states = StateEncoder(profile(robot), arms(robot)).state(positions)
    tools = split(states, profile(robot))
    np.testing.assert_allclose(join(tools, profile(robot)), states, atol=1e-5)
    for name, arm in arms(robot).items():
        poses = arm.chain.poses(positions[:, arm.columns])
        np.testing.assert_allclose(tools[name].poses.positions, poses.positions, atol=1e-12)
        np.testing.assert_allclose(tools[name].poses.rotations, poses.rotations, atol=1e-5)


def test_a_binary_gripper_closes_and_opens_with_hysteresis():
    gripper = profile("widowx").tools["arm"].gripper
    channel = [0.4, 0.7, 0.85, 0.7, 0.6, 0.4, 0.6]
    closed = [0, 0, 1, 1, 1, 0, 0]
    wide, tight = gripper.open_position, gripper.closed_position
    np.testing.assert_array_equal(gripper_positions(channel, gripper, None), np.where(closed, tight, wide))
    assert gripper_positions([0.6], gripper, tight)[0] == tight
    assert gripper_positions([0.6], gripper, wide)[0] == wide


def test_a_linear_gripper_goes_in_proportion_within_its_range():
    gripper = profile("agibot").tools["left"].gripper
    np.testing.assert_allclose(gripper_positions([0.0, 0.5, 1.0, -0.3, 1.2], gripper, None),
                               [0.7854, 0.3927, 0.0, 0.7854, 0.0])  # fmt: skip


@given(st.floats(0.0, 0.7854))
def test_grippers_of_state_and_action_run_opposite_ways_on_agibot(position: float):
    gripper = profile("agibot").tools["left"].gripper
    assert gripper_state(position, gripper) + gripper_action(position, gripper) == pytest.approx(1.0)
    assert gripper_positions([gripper_action(position, gripper)], gripper, None)[0] == pytest.approx(position)


def test_the_box_keeps_the_tool_and_takes_nothing_back_at_once():
    tool = profile("widowx").tools["arm"]  # x 0.1 … 0.45, y -0.15 … 0.25, z -0.1 … 0.18
    path = np.array([[0.2, 0.0, 0.3], [0.6, 0.0, 0.2], [0.3, 0.5, 0.3], [0.3, 0.0, 0.1], [0.3, 0.0, 0.3]])
    kept = keep_inside(path, tool, [0.2, 0.0, 0.25])
    np.testing.assert_allclose(
        kept, [[0.2, 0.0, 0.25], [0.45, 0.0, 0.2], [0.3, 0.25, 0.2], [0.3, 0.0, 0.1], [0.3, 0.0, 0.18]]
    )


def test_what_a_motion_overshoots_the_box_by_does_not_add_up():
    tool = profile("widowx").tools["arm"]
    kept = keep_inside(np.array([[0.3, 0.0, 0.3]]), tool, [0.3, 0.0, 0.185])
    np.testing.assert_allclose(kept, [[0.3, 0.0, 0.18]])
    arm = arms("widowx")["arm"]
    workspace, paths = Workspace({"arm": arm}), []
    for height in (0.18, 0.189, 0.198, 0.207):
        joints = home("widowx")
        target = Poses(np.array([0.25, 0.0, height]), arm.chain.poses(joints[arm.columns]).rotations)
        joints[arm.columns] = arm.inverse.solve_cold(target, joints[arm.columns]).positions
        paths.append(joints[None])
    begun, *paths = paths
    workspace.begin(begun[0])
    assert not workspace.left_by(paths[0], begun)
    assert all("would leave its workspace box by" in workspace.left_by(path, begun) for path in paths[1:])
    workspace.begin(paths[2][0])
    assert not any(workspace.left_by(path, paths[2]) for path in paths), "a tool that stands outside may come back"


def test_a_tool_outside_on_one_side_leaves_on_no_other_and_stays_in_once_it_has_come_in():
    arm = arms("widowx")["arm"]

    def at(*position: float) -> Floats:
        joints = home("widowx")
        joints[arm.columns] = arm.inverse.solve_cold(Poses(np.array(position), np.eye(3))).positions
        np.testing.assert_allclose(arm.chain.poses(joints[arm.columns]).positions, position, atol=1e-3)
        return joints

    above, lower, inside, beside = at(0.3, 0.05, 0.33), at(0.3, 0.05, 0.28), at(0.3, 0.05, 0.1), at(0.3, 0.35, 0.1)
    workspace = Workspace({"arm": arm})
    workspace.begin(above)
    assert not workspace.left_by(np.stack([above, inside, above]), above), "it has not come in yet"
    assert "would leave its workspace box by 0.100 m" in workspace.left_by(np.stack([above, beside]), above)
    workspace.go_on(lower)
    assert not workspace.left_by(lower[None], lower) and workspace.left_by(above[None], lower)
    workspace.go_on(inside)
    assert "would leave its workspace box by 0.100 m" in workspace.left_by(lower[None], inside)
    workspace.go_on(lower)
    assert not workspace.left_by(np.stack([lower, inside]), lower), "what something moved out may come back"
    assert workspace.left_by(above[None], lower) and workspace.left_by(lower[None], inside)
    workspace.begin(above)
    assert not workspace.left_by(above[None], above)


def test_a_binary_gripper_that_holds_something_wide_stays_closed_when_a_motion_begins_again():
    """What it holds stops it half way, where its position does not tell what it was told."""
    robot, arm = "widowx", arms("widowx")["arm"]
    gripper, decoder = arm.tool.gripper, Decoder(profile("widowx"), arms("widowx"))
    actions, start = standing(robot), home(robot).copy()
    actions[:, 9] = 0.95
    closing = decoder.decode(make_chunk(robot, actions), start)
    assert closing.positions[-1, arm.gripper] == gripper.closed_position
    start[arm.gripper] = gripper.open_position + 0.3 * (gripper.closed_position - gripper.open_position)
    actions[:, 9] = (gripper.open_below + gripper.close_above) / 2
    held = decoder.decode(make_chunk(robot, actions), start, closing.positions[-1])
    assert (held.positions[:, arm.gripper] == gripper.closed_position).all()
    actions[:, 9] = gripper.open_below - 0.1
    released = decoder.decode(make_chunk(robot, actions), start, held.positions[-1])
    assert (released.positions[:, arm.gripper] == gripper.open_position).all()


@pytest.mark.parametrize("robot", ["so101", "so101_bimanual", "so101_bimanual_lerobot", "aloha", "widowx"])
def test_grippers_are_known_in_every_action_mode(robot: str):
    order = profile(robot).joints.policy_order
    assert [order[index] for index in gripper_joints(profile(robot))] == [name for name in order if "gripper" in name]


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_straight_chunk_becomes_joints_that_lead_along_it(robot: str):
    actions = standing(robot)
    ways = [np.array([0.1, -0.1, -0.05]), np.array([0.1, 0.1, 0.05])]
    for i in range(len(arms(robot))):
        actions[:, 10 * i : 10 * i + 3] += np.linspace(0.0, 1.0, 31)[1:, None] * ways[i]
        actions[20:, 10 * i + 9] = 1.0
    trajectory = Decoder(profile(robot), arms(robot)).decode(make_chunk(robot, actions), home(robot))
    assert trajectory.joints == profile(robot).joints.policy_order
    assert trajectory.times[0] == STAMP + round(profile(robot).policy.waypoint_dt * 1e9)
    assert trajectory.nothing_reached() == "" and not trajectory.out_of_reach().any()
    given_waypoints = trajectory.positions[trajectory.waypoints]
    poses = StateEncoder(profile(robot), arms(robot)).tool_poses(given_waypoints)
    for i, (name, arm) in enumerate(arms(robot).items()):
        assert trajectory.reach[name].count(REACHED) == 30
        np.testing.assert_allclose(poses[name].positions, actions[:, 10 * i : 10 * i + 3], atol=1e-4)
        grippers, closes = trajectory.positions[:, arm.gripper], trajectory.waypoints[20]
        closed = grippers == arm.tool.gripper.closed_position
        assert closed[closes:].all() and not closed[: trajectory.waypoints[19] + 1].any()
        if arm.tool.gripper.rule == "binary":
            assert (grippers[:closes] == arm.tool.gripper.open_position).all()
    speeds = np.array([joint.max_velocity for joint in profile(robot).joints.ordered])
    moved = np.abs(np.diff(np.vstack([home(robot), given_waypoints]), axis=0))
    arm_joints = [column for arm in arms(robot).values() for column in arm.columns]
    assert np.all(moved[:, arm_joints] <= speeds[arm_joints] * profile(robot).policy.waypoint_dt + 1e-9)


def far_apart(robot: str, step: float) -> tuple[Floats, Trajectory]:
    """Waypoints on a line of 5 cm with ``step`` m from one to the next, turning, and what becomes of them."""
    count = round(0.05 / step) + 1
    actions, share = standing(robot, count), np.linspace(0.0, 1.0, count)
    for i, (name, arm) in enumerate(arms(robot).items()):
        start = arm.chain.poses(arm.inverse.home)
        turned = start.rotations @ axis_angle_to_matrix(np.outer(share, [0.0, 0.0, 0.3]))
        actions[:, 10 * i : 10 * i + 3] += share[:, None] * [0.0, 0.05, 0.0]
        rotations = turned @ policy_turn(profile(robot).tools[name]).T
        actions[:, 10 * i + 3 : 10 * i + 9] = matrix_to_rot6d(rotations, profile(robot).policy.rot6d)
    return actions, Decoder(profile(robot), arms(robot)).decode(make_chunk(robot, actions), home(robot))


@pytest.mark.parametrize("robot", ROBOTS)
def test_between_waypoints_far_apart_the_tool_goes_straight(robot: str):
    _, trajectory = far_apart(robot, 0.05)
    assert len(trajectory.waypoints) == 2 and len(trajectory.times) > 4
    for arm in arms(robot).values():
        poses = arm.chain.poses(trajectory.positions[:, arm.columns])
        share = np.linspace(0.0, 1.0, len(trajectory.times))
        along = poses.positions[0] + share[:, None] * (poses.positions[-1] - poses.positions[0])
        np.testing.assert_allclose(poses.positions, along, atol=1e-4)
        turned = matrix_to_axis_angle(poses.rotations[0].T @ poses.rotations)
        np.testing.assert_allclose(turned, share[:, None] * turned[-1], atol=1e-3)
        chord = trajectory.positions[[0, -1]][:, arm.columns].mean(axis=0)
        bent = np.linalg.norm(arm.chain.poses(chord).positions - poses.positions[[0, -1]].mean(axis=0))
        assert bent > 2e-4, "the joints' straight way would have shown nothing"


def test_points_between_keep_the_times_of_the_waypoints_and_the_command_rate():
    actions, trajectory = far_apart("widowx", 0.01)
    due = make_chunk("widowx", actions).times
    np.testing.assert_array_equal(trajectory.times[trajectory.waypoints], STAMP + np.rint(due * 1e9).astype(np.int64))
    np.testing.assert_allclose(np.diff(trajectory.times) / 1e9, 1.0 / profile("widowx").timing.command_rate, rtol=1e-4)
    often = profile("widowx").to_mapping()
    often["policy"]["waypoint_dt"] = 1.4 / often["timing"]["command_rate"]
    close = Decoder(Profile.from_mapping("widowx", often), arms("widowx"))
    assert len(close.decode(make_chunk("widowx", actions), home("widowx")).times) == len(actions)


def test_a_way_between_waypoints_that_cannot_be_solved_is_that_of_the_joints():
    arm = arms("widowx")["arm"]
    first = np.array(NEUTRAL)
    second = first + np.array([3.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # its straight way leads past the base
    joints = arm.follower.between(np.array([first, second]), [0.0, 0.2], np.linspace(0.0, 0.2, 6))
    np.testing.assert_allclose(joints, first + np.linspace(0.0, 1.0, 6)[:, None] * (second - first), atol=1e-9)


@given(
    hnp.arrays(np.float64, (6, 3), elements=st.floats(-0.08, 0.08)),
    hnp.arrays(np.float64, (6, 3), elements=st.floats(-0.5, 0.5)),
)
@settings(max_examples=30)
def test_points_between_never_leave_limits_or_box(ways: Floats, turns: Floats):
    robot = "widowx"
    actions = standing(robot, 6)
    arm = arms(robot)["arm"]
    actions[:, :3] += ways
    rotations = arm.chain.poses(arm.inverse.home).rotations @ axis_angle_to_matrix(turns) @ policy_turn(arm.tool).T
    actions[:, 3:9] = matrix_to_rot6d(rotations, profile(robot).policy.rot6d)
    trajectory = Decoder(profile(robot), arms(robot)).decode(make_chunk(robot, actions), home(robot))
    joints = trajectory.positions[:, arm.columns]
    assert np.isfinite(joints).all()
    assert (joints >= arm.inverse.lower - 1e-9).all() and (joints <= arm.inverse.upper + 1e-9).all()
    between = np.abs(np.diff(joints, axis=0)).max(axis=0)
    assert (between <= 2.0 * arm.follower.max_velocity * profile(robot).policy.waypoint_dt).all()


def test_actions_between_waypoints_are_on_the_path_of_poses():
    actions, _ = far_apart("widowx", 0.05)
    due = make_chunk("widowx", actions).times
    actions[1, 9] = 1.0
    at = np.linspace(due[0] - 0.1, due[1] + 0.1, 13)
    found = resample(actions, due, at, profile("widowx"))
    share = np.clip((at - due[0]) / (due[1] - due[0]), 0.0, 1.0)
    np.testing.assert_allclose(
        found[:, :3], actions[0, :3] + share[:, None] * (actions[1, :3] - actions[0, :3]), atol=1e-9
    )
    assert np.max(rot6d_misfit(found[:, 3:9], profile("widowx").policy.rot6d)) < 1e-5
    np.testing.assert_array_equal(found[:, 9], share == 1.0)
    np.testing.assert_allclose(resample(actions, due, due, profile("widowx")), actions, atol=1e-5)


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_chunk_decodes_without_knowing_the_joints(robot: str):
    trajectory = Decoder(profile(robot), arms(robot)).decode(make_chunk(robot, standing(robot)))
    assert all(path.count(REACHED) == 30 for path in trajectory.reach.values())


def test_a_chunk_beyond_reach_says_so_and_moves_nothing():
    far = changed("widowx", workspace_max=[2.0, 2.0, 2.0])
    actions = standing("widowx", 5)
    actions[:, 0] = 1.5
    trajectory = Decoder(far).decode(make_chunk("widowx", actions), home("widowx"))
    assert trajectory.reach["arm"].count(HELD) == 5
    assert np.flatnonzero(trajectory.out_of_reach()).tolist() == trajectory.waypoints.tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(trajectory.positions, np.tile(home("widowx"), (len(trajectory.times), 1)), atol=1e-12)
    assert "tool 'arm' cannot reach any of 5 waypoints; it stays 1.38 m" in trajectory.nothing_reached()


def test_a_chunk_that_does_not_fit_is_refused():
    decoder = Decoder(profile("widowx"), arms("widowx"))
    with pytest.raises(ValueError, match=r"shape \[2, 14\], expected \[2, 20\]: waypoints by channels of tool poses"):
        decoder.decode(make_chunk("widowx", np.zeros((2, 14))), home("widowx"))
    broken = standing("widowx", 2)
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"waypoint 1 of channel 'arm\.z' is nan"):
        decoder.decode(make_chunk("widowx", broken), home("widowx"))
    with pytest.raises(ValueError, match="expected 7 finite positions"):
        decoder.decode(make_chunk("widowx", standing("widowx", 2)), [0.0] * 6)
    with pytest.raises(ValueError, match=r"shape \[6\], expected \[..., 7\]"):
        StateEncoder(profile("widowx"), arms("widowx")).state(np.zeros(6))
    with pytest.raises(ValueError, match=r"tool 'arm'.*no direction"):
        decoder.decode(make_chunk("widowx", np.zeros((2, 20))), home("widowx"))


def test_a_robot_description_comes_before_the_named_file():
    text = shipped_description("wx250s").text.replace('xyz="0.093575 0 0"', 'xyz="0.193575 0 0"')
    longer = tool_arms(profile("widowx"), RobotDescription(text, "/robot_description"))["arm"]
    assert longer.chain.description.origin == "/robot_description"
    assert longer.chain.poses(np.zeros(6)).positions[0] == pytest.approx(0.558325)


def test_joints_may_be_listed_where_names_differ_or_repeat():
    names = list(profile("widowx").joints.policy_order[:6])
    raw = changed("widowx", joints=names).to_mapping()
    for i, name in enumerate(names):
        raw["joints"][name]["name"] = str(i + 1)
    renamed = Profile.from_mapping("widowx", raw)
    state = StateEncoder(renamed).state([*NEUTRAL, 0.037])
    np.testing.assert_allclose(state[:3], [0.120201, -0.019085, 0.246696], atol=1e-5)
    raw["tools"]["arm"]["joints"] = []
    with pytest.raises(KinematicsError, match=r"joint 'waist' of .*wx250s\.urdf moves tool 'arm', and no joint has"):
        tool_arms(Profile.from_mapping("widowx", raw))


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"urdf": ""}, r"tools\.arm\.urdf is empty and no robot_description was received"),
        ({"urdf": "wx200.urdf"}, "no URDF 'wx200.urdf'; looked for"),
        ({"home": [0.0, 0.0]}, r"tools\.arm\.home has 2 positions, expected 6"),
        (
            {"home": [0.0, 2.2, 0.0, 0.0, 0.0, 0.0]},
            r"tools\.arm\.home has 2\.2 for joint 'shoulder', expected -1\.88496 … 1\.98968 rad or m",
        ),
        ({"joints": ["waist", "shoulder"], "home": []}, r"lists 2 joints \(waist, shoulder\), but .* has 6 between"),
        (
            {"joints": ["waist", "shoulder", "elbow", "forearm_roll", "wrist_rotate", "wrist_angle"]},
            r"has 'wrist_rotate', which is 'wrist_rotate' in ROS, instead of 'wrist_angle'; expected the order",
        ),
    ],
)
def test_tools_that_fit_no_urdf_are_refused_by_name(tool: dict[str, Any], message: str):
    with pytest.raises(KinematicsError, match=message):
        tool_arms(changed("widowx", **tool))


def test_poses_are_commanded_in_the_frame_they_are_in():
    raw = profile("libero_panda").to_mapping()
    raw["tools"]["arm"]["frame"] = "panda_link0"
    with pytest.raises(KinematicsError, match=r"tools\.arm\.frame is 'panda_link0', another link of .* or 'world'"):
        tool_arms(Profile.from_mapping("libero_panda", raw))
    for frame in ("", "table"):  # the second is none of the URDF's
        raw["tools"]["arm"]["frame"] = frame
        assert tool_arms(Profile.from_mapping("libero_panda", raw))


def test_a_joint_of_two_tools_or_of_no_command_group_is_refused_though_no_list_names_it():
    raw = profile("agibot").to_mapping()
    raw["tools"]["right"]["tip_link"] = raw["tools"]["left"]["tip_link"]
    with pytest.raises(
        KinematicsError, match=r"tools\.right\.joints: joint 'left_joint7' is also in the arm of tool 'left'"
    ):
        tool_arms(Profile.from_mapping("agibot", raw))
    raw = profile("widowx").to_mapping()
    raw["commands"]["arm"]["joints"].remove("wrist_angle")
    with pytest.raises(KinematicsError, match="widowx: joint 'wrist_angle' of tool 'arm' is commanded by no group"):
        tool_arms(Profile.from_mapping("widowx", raw))


def test_limits_wider_than_the_robots_are_refused_all_at_once():
    raw = profile("widowx").to_mapping()
    raw["joints"]["elbow"].update(upper=1.7)
    raw["joints"]["waist"].update(max_velocity=4.0)
    raw["joints"]["gripper"].update(upper=0.05)
    with pytest.raises(KinematicsError) as caught:
        tool_arms(Profile.from_mapping("widowx", raw))
    told = str(caught.value)
    assert "joint 'waist' has max_velocity 4 in the profile and 3.14159 in the URDF" in told
    assert "joint 'elbow' may move -2.14675 … 1.7 in the profile and -2.14675 … 1.6057 in the URDF" in told
    assert "joint 'gripper' may move 0.015 … 0.05 in the profile and 0.015 … 0.037 in the URDF (left_finger)" in told


def test_robots_in_joint_space_have_no_arms_to_solve():
    assert tool_arms(load_profile("so101_bimanual")["so101_bimanual"]) == {}
