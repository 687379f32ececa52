# SPDX-License-Identifier: Apache-2.0
"""Forward and inverse kinematics of the shipped arms against the vendors' figures."""

from __future__ import annotations

import math
import re
import sys
from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from xvla_ros.errors import KinematicsError
from xvla_ros.resources import config_dir
from xvla_ros.robots.kinematics import (
    Chain,
    InverseKinematics,
    PathFollower,
    Poses,
    RobotDescription,
    shipped_description,
)
from xvla_ros.robots.kinematics.inverse import HELD, LAGGING, NEAR, REACHED
from xvla_ros.robots.rotations import rpy_to_matrix

Floats = NDArray[np.float64]
LEFT_HOME = (-1.0751, 0.6109, 0.2793, -1.2846, 0.7295, 1.4957, -0.1868)
RIGHT_HOME = (1.0734, -0.6109, -0.2793, 1.2846, -0.7313, -1.4957, 0.1868)
ARMS: dict[str, tuple[str, str, str, tuple[float, ...] | None]] = {
    "widowx": ("wx250s", "wx250s/base_link", "wx250s/ee_gripper_link", None),
    "agibot_left": ("agibot_g1", "arm_base_link", "arm_l_end_link", LEFT_HOME),
    "agibot_right": ("agibot_g1", "arm_base_link", "arm_r_end_link", RIGHT_HOME),
    "so101": ("so101", "base_link", "gripper_frame_link", None),
    "panda": ("panda", "panda_link0", "panda_hand_tcp", None),
}
PI, HALF = math.pi, math.pi / 2


@cache
def chain(arm: str) -> Chain:
    urdf, base, tip, _ = ARMS[arm]
    return Chain(shipped_description(urdf), base, tip)


@cache
def inverse(arm: str) -> InverseKinematics:
    return InverseKinematics(chain(arm), home=ARMS[arm][3])


def random_joints(arm: str, count: int, seed: int = 0) -> Floats:
    """Joint positions [count, J] within the limits."""
    limits = chain(arm)
    return np.random.default_rng(seed).uniform(limits.lower, limits.upper, (count, len(limits.joints)))


def joints_within_limits(arm: str, margin: float = 0.0) -> st.SearchStrategy[Floats]:
    """Joint positions [J] at least ``margin`` rad inside of the limits."""
    limits = chain(arm)
    low, high = limits.lower + margin, limits.upper - margin
    share = hnp.arrays(np.float64, len(limits.joints), elements=st.floats(0.0, 1.0))
    return share.map(lambda part: low + part * (high - low))


def turned_by(one: Floats, other: Floats) -> float:
    """The angle in rad between two rotations [3, 3], exact for small ones."""
    return float(np.linalg.norm(one - other) / np.sqrt(2.0))


# origin xyz, rpy and axis of every joint, then of what is fixed behind the last, as robots' vendors publish them
WIDOWX = [
    ((0, 0, 0.072), (0, 0, 0), "z"), ((0, 0, 0.03865), (0, 0, 0), "y"), ((0.04975, 0, 0.25), (0, 0, 0), "y"),
    ((0.175, 0, 0), (0, 0, 0), "x"), ((0.075, 0, 0), (0, 0, 0), "y"), ((0.065, 0, 0), (0, 0, 0), "x"),
    ((0.093575, 0, 0), (0, 0, 0), ""),
]  # fmt: skip
SO101 = [
    ((0.0388353, 0, 0.0624), (PI, 0, -PI), "z"), ((-0.0303992, -0.0182778, -0.0542), (-HALF, -HALF, 0), "z"),
    ((-0.11257, -0.028, 0), (0, 0, HALF), "z"), ((-0.1349, 0.0052, 0), (0, 0, -HALF), "z"),
    ((0, -0.0611, 0.0181), (HALF, 0.0486795, PI), "z"), ((-0.0079, -0.000218, -0.0981274), (0, PI, 0), ""),
]  # fmt: skip


def agibot(side: int) -> list[tuple[tuple[float, ...], tuple[float, ...], str]]:
    """The left arm (1) or the right one (-1)."""
    return [
        ((0, side * 0.025, 0), (-HALF, 0, 0 if side > 0 else PI), ""),
        ((0, 0, 0.1859 if side > 0 else 0.188), (0, 0, 0), "z"), ((0, 0, 0), (-HALF, 0, side * HALF), "z"),
        ((0, -0.305, 0), (-HALF, side * HALF, PI), "z"), ((0, 0, 0), (-HALF, 0, PI), "z"),
        ((0, -0.1975, 0), (-HALF, 0, -PI), "z"), ((0, 0, 0), (-HALF, 0, 0), "z"), ((0, -0.1805, 0), (HALF, 0, 0), "z"),
    ]  # fmt: skip


FIGURES = {"widowx": WIDOWX, "so101": SO101, "agibot_left": agibot(1), "agibot_right": agibot(-1)}


def product(figures: list, joints: Floats) -> Floats:
    """The pose [4, 4] at the end of a chain, multiplied out from its figures."""
    pose, angles = np.eye(4), list(joints)
    for xyz, rpy, axis in figures:
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = rpy_to_matrix(rpy), xyz
        if axis:
            turn = np.zeros(3)
            turn["xyz".index(axis)] = angles.pop(0)
            step[:3, :3] = step[:3, :3] @ rpy_to_matrix(turn)
        pose = pose @ step
    return pose


@pytest.mark.parametrize("arm", FIGURES)
def test_forward_kinematics_is_the_product_of_the_figures(arm: str):
    joints = random_joints(arm, 200)
    poses = chain(arm).poses(joints)
    expected = np.array([product(FIGURES[arm], each) for each in joints])
    np.testing.assert_allclose(poses.positions, expected[:, :3, 3], atol=1e-8)
    np.testing.assert_allclose(poses.rotations, expected[:, :3, :3], atol=1e-8)


@pytest.mark.parametrize(
    ("joints", "position"),
    [
        ([0.0] * 6, [0.458325, 0.0, 0.36065]),
        ([0.0, -0.96, 1.16, 0.0, -0.3, 0.0], [0.226534, 0.0, 0.260949]),
        ([-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401], [0.120201, -0.019085, 0.246696]),
    ],
)
def test_widowx_stands_where_its_vendor_and_bridge_say(joints: list[float], position: list[float]):
    np.testing.assert_allclose(chain("widowx").poses(joints).positions, position, atol=1e-5)


def test_widowx_points_along_x_at_zero():
    np.testing.assert_allclose(chain("widowx").poses(np.zeros(6)).rotations, np.eye(3), atol=1e-12)


def test_so101_at_zero_points_along_x():
    pose = chain("so101").poses(np.zeros(5))
    np.testing.assert_allclose(pose.positions, [0.3914, 0.0, 0.2265], atol=5e-5)
    turn = [[0, 0, 1], [0.0487, 0.9988, 0], [-0.9988, 0.0487, 0]]
    np.testing.assert_allclose(pose.rotations, turn, atol=5e-5)


@pytest.mark.parametrize(
    ("arm", "position"), [("agibot_left", [0.344, 0.300, 0.039]), ("agibot_right", [0.344, -0.302, 0.038])]
)
def test_agibot_flanges_at_home(arm: str, position: list[float]):
    np.testing.assert_allclose(chain(arm).poses(ARMS[arm][3]).positions, position, atol=5e-4)


def test_panda_at_ready():
    pose = chain("panda").poses([0, -PI / 4, 0, -3 * PI / 4, 0, PI / 2, PI / 4])
    np.testing.assert_allclose(pose.positions, [0.306891, 0.0, 0.486882], atol=1e-5)
    np.testing.assert_allclose(pose.rotations, np.diag([1.0, -1.0, -1.0]), atol=1e-8)


def test_the_pair_is_twice_the_arm():
    pair = shipped_description("so101_pair")
    joints = random_joints("so101", 20)
    alone = chain("so101").poses(joints)
    for side, y in (("left", 0.2), ("right", -0.2)):
        both = Chain(pair, "table", f"{side}_gripper_frame_link")
        assert both.joints == tuple(f"{side}_{joint}" for joint in chain("so101").joints)
        np.testing.assert_allclose(both.poses(joints).positions, alone.positions + np.array([0.0, y, 0.0]), atol=1e-12)
        np.testing.assert_array_equal(both.lower, chain("so101").lower)


@pytest.mark.parametrize("arm", ARMS)
def test_another_reader_of_the_files_gives_the_same_frames(arm: str):
    """MuJoCo, which reads whole robots and refuses inertias that no body has."""
    urdf, base, _, _ = ARMS[arm]
    model = mujoco.MjModel.from_xml_path(str(config_dir() / "urdf" / f"{urdf}.urdf"))
    data, joints = mujoco.MjData(model), random_joints(arm, 1)[0]
    for name, value in zip(chain(arm).joints, joints, strict=True):
        data.joint(name).qpos[0] = value
    mujoco.mj_kinematics(model, data)
    last = int(model.joint(chain(arm).joints[-1]).bodyid[0])
    moved = Chain(shipped_description(urdf), base, model.body(last).name)
    seen = moved.base.rotation @ moved.poses(joints).positions + moved.base.translation
    np.testing.assert_allclose(data.xpos[last], seen, atol=1e-7)


@pytest.mark.parametrize("arm", ARMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_inverse_kinematics_undoes_forward_kinematics(arm: str, data: st.DataObject):
    joints = data.draw(joints_within_limits(arm))
    away = data.draw(st.floats(-0.03, 0.03))
    target = chain(arm).poses(joints)
    found = inverse(arm).solve(target, joints + away)
    again = chain(arm).poses(found.positions)
    assert found.converged
    assert np.linalg.norm(again.positions - target.positions) < 1e-4
    assert turned_by(again.rotations, target.rotations) < 1e-4
    assert np.all(found.positions >= chain(arm).lower) and np.all(found.positions <= chain(arm).upper)


@pytest.mark.parametrize("share", [0.00195312, 0.00030596])
def test_an_arm_held_by_nearly_all_of_its_limits_is_solved(share: float):
    limits = chain("agibot_right")
    joints = limits.lower.copy()
    joints[1] += share * (limits.upper - limits.lower)[1]
    assert inverse("agibot_right").solve(limits.poses(joints), joints + 0.015625).converged


@pytest.mark.parametrize("arm", ARMS)
def test_every_reachable_pose_is_reached_warm_and_nearly_every_one_cold(arm: str):
    joints = random_joints(arm, 150)
    targets = chain(arm).poses(joints)
    near = joints + np.random.default_rng(1).uniform(-0.03, 0.03, joints.shape)
    warm = [inverse(arm).solve(targets[i], near[i]) for i in range(len(joints))]
    assert all(each.converged and each.position_error < 1e-4 and each.rotation_error < 1e-4 for each in warm)
    cold = [inverse(arm).solve_cold(targets[i]) for i in range(60)]
    assert sum(each.converged for each in cold) >= 59


def test_a_cold_start_is_repeatable():
    target = chain("widowx").poses(random_joints("widowx", 1)[0])
    first, second = (inverse("widowx").solve_cold(target) for _ in range(2))
    np.testing.assert_array_equal(first.positions, second.positions)


def test_the_seventh_joint_goes_home_while_the_tool_stays():
    arm, solver = chain("agibot_left"), inverse("agibot_left")
    target = arm.poses(solver.home)
    nudged = Poses(target.positions + np.array([0.0, 0.0, 2e-5]), target.rotations)  # without, nothing is left to solve
    joints = solver.solve(target, solver.home + np.array([0.5, 0.4, 0.5, 0.0, -0.5, 0.0, 0.5])).positions
    away = np.abs(joints - solver.home).max()
    assert away > 0.2
    for _ in range(100):
        joints = solver.solve(nudged, joints).positions
        joints = solver.solve(target, joints).positions
        assert np.linalg.norm(arm.poses(joints).positions - target.positions) < 1e-5
    assert np.abs(joints - solver.home).max() < 0.1 * away


def test_an_arm_of_five_joints_puts_position_before_approach_before_roll():
    arm, solver = chain("so101"), inverse("so101")
    start = np.array([0.2, -0.4, 0.5, 1.0, 0.0])
    pose = arm.poses(start)
    sideways = pose.rotations @ rpy_to_matrix([0.25, 0.0, 0.0])  # the arm has no joint for this
    found = solver.solve(Poses(pose.positions, sideways), start)
    reached = arm.poses(found.positions)
    assert not found.converged
    assert np.linalg.norm(reached.positions - pose.positions) < 1e-3
    assert turned_by(reached.rotations, sideways) < 0.3
    rolled = pose.rotations @ rpy_to_matrix([0.0, 0.0, 0.4])
    turned = solver.solve(Poses(pose.positions, rolled), start)
    assert turned.position_error < 1e-4 and turned.rotation_error < 0.01


def straight(arm: str, start: Floats, way: Floats, count: int) -> Poses:
    pose = chain(arm).poses(start)
    share = np.linspace(0.0, 1.0, count + 1)[1:, None]
    return Poses(pose.positions + share * way, np.tile(pose.rotations, (count, 1, 1)))


def follower(arm: str, **tolerances: float) -> PathFollower:
    return PathFollower(inverse(arm), np.full(len(chain(arm).joints), 1.57), **tolerances)


@pytest.mark.parametrize(
    ("arm", "start", "way"),
    [
        ("widowx", [-0.13, -0.76, 0.44, -0.02, 1.76, -0.16], [0.2, 0.0, -0.05]),
        ("agibot_left", LEFT_HOME, [0.1, -0.15, 0.1]),
        ("agibot_right", RIGHT_HOME, [0.1, 0.15, 0.1]),
    ],
)
def test_a_straight_path_is_followed_without_a_leap(arm: str, start: list[float], way: list[float]):
    targets = straight(arm, np.array(start), np.array(way), 30)
    path = follower(arm).follow(targets, np.full(30, 1 / 6), start)
    assert path.count(REACHED) == 30
    assert path.position_error.max() < 1e-4 and path.rotation_error.max() < 1e-4
    leaps = np.abs(np.diff(np.vstack([start, path.positions]), axis=0))
    assert leaps.max() < 0.15
    np.testing.assert_allclose(chain(arm).poses(path.positions).positions, targets.positions, atol=1e-4)


def test_a_singularity_makes_the_tool_lag_and_no_joint_leap():
    """Across the axis of the waist, which would have to turn by half a circle at once."""
    start = np.array([0.0, -1.4, 1.3, 0.0, 1.5, 0.0])
    targets = straight("widowx", start, np.array([-0.35, 0.004, 0.0]), 30)
    path = follower("widowx", position_tolerance=0.01).follow(targets, np.full(30, 0.05), start)
    leaps = np.abs(np.diff(np.vstack([start, path.positions]), axis=0))
    assert leaps.max() <= 1.57 * 0.05 + 1e-9
    assert path.count(LAGGING, HELD) > 0


def test_out_of_reach_is_the_nearest_pose_within_tolerance_and_beyond_it_a_hold():
    start = np.array([0.0, 0.2, -0.3, 0.0, 0.1, 0.0])
    targets = straight("widowx", start, np.array([0.3, 0.0, 0.0]), 40)
    path = follower("widowx", position_tolerance=0.02).follow(targets, np.full(40, 1 / 6), start)
    first_near, first_held = path.status.index(NEAR), path.status.index(HELD)
    assert 0 < first_near < first_held
    assert all(status == HELD for status in path.status[first_held:])
    assert np.ptp(path.positions[first_held - 1 :], axis=0).max() == 0.0
    assert np.all(path.position_error[:first_held] <= 0.02)
    assert np.all(np.diff(path.position_error[first_held:]) > 0)


def test_without_a_start_the_first_waypoint_may_be_anywhere():
    start = np.array([-0.13, -0.76, 0.44, -0.02, 1.76, -0.16])
    targets = straight("widowx", start, np.array([0.1, 0.05, -0.05]), 10)
    path = follower("widowx").follow(targets, np.full(10, 1 / 6), None)
    assert path.count(REACHED) == 10


def test_quaternions_name_their_order():
    pose = chain("agibot_left").poses(LEFT_HOME)
    xyzw, wxyz = pose.quaternions_xyzw(), pose.quaternions_wxyz()
    np.testing.assert_array_equal(wxyz, [xyzw[3], *xyzw[:3]])
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, wxyz)
    np.testing.assert_allclose(matrix.reshape(3, 3), pose.rotations, atol=1e-9)


@pytest.mark.parametrize(
    ("base", "tip", "message"),
    [
        ("wx250s/base_lnk", "wx250s/ee_gripper_link", "no link 'wx250s/base_lnk'.*did you mean 'wx250s/base_link'"),
        ("wx250s/gripper_link", "wx250s/ee_gripper_link", "no joint moves between"),
        ("wx250s/left_finger_link", "wx250s/base_link", r"moves with left_finger.*which do not carry"),
    ],
)
def test_links_that_make_no_arm_are_refused(base: str, tip: str, message: str):
    with pytest.raises(KinematicsError, match=message):
        Chain(shipped_description("wx250s"), base, tip)


def test_descriptions_that_cannot_be_had_say_where_was_looked(tmp_path: Path):
    with pytest.raises(KinematicsError, match="available: agibot_g1, libero_panda, panda, so101, so101_pair, wx250s"):
        shipped_description("ur5")
    with pytest.raises(KinematicsError, match=rf"no URDF 'arm.urdf'; looked for {re.escape(str(tmp_path))}"):
        RobotDescription.from_file("arm.urdf", tmp_path)
    broken = tmp_path / "arm.urdf"
    broken.write_text("<robot")
    with pytest.raises(KinematicsError, match=r"arm\.urdf is not a URDF: .*line 1: <robot> is not finished"):
        Chain(RobotDescription.from_file("arm.urdf", tmp_path), "a", "b")
    text = shipped_description("so101").text
    turning = text.replace('"wrist_roll" type="revolute"', '"wrist_roll" type="continuous"')
    with pytest.raises(KinematicsError, match=r"joint 'wrist_roll'.*give a continuous joint limits"):
        Chain(RobotDescription(turning, "the topic"), "base_link", "gripper_frame_link")


def test_without_pinocchio_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pinocchio", None)
    with pytest.raises(KinematicsError, match=r"pip install 'xvla_ros\[kinematics\]'"):
        Chain(shipped_description("so101"), "base_link", "gripper_frame_link")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"positions have shape \[7\], expected \[..., 6\] for waist, shoulder"):
        chain("widowx").poses(np.zeros(7))
    with pytest.raises(ValueError, match=r"expected \[..., 3\] and \[..., 3, 3\]"):
        Poses(np.zeros((2, 3)), np.eye(3))


def test_limits_narrower_than_the_urdf_are_kept():
    arm = chain("widowx")
    joints = np.array([0.5, -0.5, 0.5, 0.0, 1.0, 0.0])
    solver = InverseKinematics(arm, lower=arm.lower * 0.1, upper=arm.upper * 0.1)
    found = solver.solve(arm.poses(joints), np.zeros(6))
    assert not found.converged
    assert np.all(np.abs(found.positions) <= 0.1 * np.maximum(arm.upper, -arm.lower) + 1e-12)
