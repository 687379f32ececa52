# SPDX-License-Identifier: Apache-2.0
"""The arm of boxes against the kinematics of the official URDF."""

import mujoco
import numpy as np
import pytest

from xvla_ros.simulation import so101
from xvla_ros.simulation.scenes import build_scene

ZERO_POSE_POSITION = (0.3914, 0.0, 0.2265)
ZERO_POSE_ROTATION = ((0.0, 0.0, 1.0), (0.0487, 0.9988, 0.0), (-0.9988, 0.0487, 0.0))
BASES = {"left_": (0.0, 0.2, 0.0), "right_": (0.0, -0.2, 0.0)}


@pytest.fixture(scope="module")
def model():
    return build_scene("so101_bimanual", 1 / 600).model


def rotation(rpy):
    """Matrix of fixed-axis roll, pitch, yaw, written out."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def forward_kinematics(angles):
    """Position and rotation of gripper_frame_link in the base, by multiplying the figures of the table."""
    position, turn = np.zeros(3), np.eye(3)
    for figures, angle in zip(list(so101.JOINTS.values())[:5], angles, strict=True):
        position = position + turn @ np.array(figures.xyz)
        turn = turn @ rotation(figures.rpy) @ rotation((0.0, 0.0, angle))
    return position + turn @ np.array(so101.TOOL_XYZ), turn @ rotation(so101.TOOL_RPY)


def tool_pose(model, prefix, angles):
    data = mujoco.MjData(model)
    for joint, angle in zip(list(so101.JOINTS)[:5], angles, strict=True):
        data.joint(prefix + joint).qpos[0] = angle
    mujoco.mj_forward(model, data)
    site = data.site(f"{prefix}tool")
    return site.xpos - np.array(BASES[prefix]), site.xmat.reshape(3, 3)


@pytest.mark.parametrize("prefix", BASES)
def test_zero_pose_is_the_urdfs(model, prefix):
    position, turn = tool_pose(model, prefix, [0.0] * 5)
    # The published figures have four digits.
    np.testing.assert_allclose(position, ZERO_POSE_POSITION, atol=5e-5)
    np.testing.assert_allclose(turn, ZERO_POSE_ROTATION, atol=5e-5)


@pytest.mark.parametrize("prefix", BASES)
def test_kinematics_agree_with_the_table_to_ten_micrometres(model, prefix):
    limits = [(figures.lower, figures.upper) for figures in list(so101.JOINTS.values())[:5]]
    for angles in np.random.default_rng(0).uniform(*np.transpose(limits), size=(50, 5)):
        position, turn = tool_pose(model, prefix, angles)
        expected_position, expected_turn = forward_kinematics(angles)
        np.testing.assert_allclose(position, expected_position, atol=1e-5)
        np.testing.assert_allclose(turn, expected_turn, atol=1e-5)


def test_positive_pan_turns_toward_minus_y(model):
    position, _ = tool_pose(model, "left_", [0.3, 0.0, 0.0, 0.0, 0.0])
    assert position[1] < -0.05


@pytest.mark.parametrize("prefix", BASES)
def test_limits_of_joints_and_servos(model, prefix):
    for name, figures in so101.JOINTS.items():
        joint, servo = model.joint(prefix + name), model.actuator(prefix + name)
        assert tuple(joint.range) == pytest.approx((figures.lower, figures.upper), abs=1e-9)
        assert tuple(servo.ctrlrange) == pytest.approx((figures.lower, figures.upper), abs=1e-9)
        assert tuple(servo.forcerange) == pytest.approx((-3.35, 3.35))
        assert servo.gainprm[0] == pytest.approx(998.0)
        assert tuple(servo.biasprm[:3]) == pytest.approx((0.0, -998.0, -2.73))


def test_the_jaw_closes_on_the_fixed_finger_at_the_tool(model):
    data = mujoco.MjData(model)
    pads = [i for i in range(model.ngeom) if model.geom_condim[i] == 4 and model.geom_contype[i] == 2]
    assert len(pads) == 2
    gaps = {}
    for angle in (so101.JOINTS["gripper"].lower, 0.0, 0.6):
        data.joint("left_gripper").qpos[0] = angle
        mujoco.mj_forward(model, data)
        gaps[angle] = mujoco.mj_geomDistance(model, data, *pads, 0.2, np.zeros(6))
    closed, straight, opened = gaps.values()
    assert closed < 0.003 < straight < opened
    assert opened > 0.04
