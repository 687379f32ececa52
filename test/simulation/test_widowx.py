# SPDX-License-Identifier: Apache-2.0
"""The WidowX of boxes against the kinematics of the official URDF."""

import mujoco
import numpy as np
import pytest

from xvla_ros.robots import load_profile
from xvla_ros.simulation import widowx
from xvla_ros.simulation.scenes import build_scene

# Joints → ee_gripper_link in the base, as computed from the vendor's URDF.
POSES = {
    "zero": ((0.0,) * 6, (0.458325, 0.0, 0.36065)),
    "home": ((0.0, -0.96, 1.16, 0.0, -0.3, 0.0), (0.2265, 0.0, 0.2609)),
    "Bridge neutral": (
        (-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401),
        (0.120201, -0.019085, 0.246696),
    ),
}


@pytest.fixture(scope="module")
def model():
    return build_scene("widowx", 1 / 600).model


@pytest.fixture
def pose(model, site_pose):
    return lambda angles: site_pose(model, "tool", dict(zip(widowx.JOINTS, angles, strict=True)), "base")


@pytest.mark.parametrize("name", POSES)
def test_known_poses_are_the_urdfs(pose, name):
    angles, expected = POSES[name]
    digits = 5e-5 if name == "home" else 1e-6  # as many as were published
    np.testing.assert_allclose(pose(angles)[0], expected, atol=digits)


def test_at_zero_the_gripper_is_not_turned(pose):
    np.testing.assert_allclose(pose((0.0,) * 6)[1], np.eye(3), atol=1e-9)


def test_kinematics_agree_with_the_table_to_ten_micrometres(pose, chain):
    limits = [(figures.lower, figures.upper) for figures in widowx.JOINTS.values()]
    for angles in np.random.default_rng(0).uniform(*np.transpose(limits), size=(50, 6)):
        expected = chain(widowx.JOINTS.values(), angles, [(widowx.TOOL_XYZ, (0.0, 0.0, 0.0))])
        for found, wanted in zip(pose(angles), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_scene_starts_with_the_gripper_down_inside_the_workspace(pose):
    home = build_scene("widowx", 1 / 600).home
    position, turn = pose([home[joint] for joint in widowx.JOINTS])
    np.testing.assert_allclose(turn[:, 0], (0.0, 0.0, -1.0), atol=1e-3)
    tool = load_profile("widowx")["widowx"].tools["arm"]
    assert np.all(position > tool.workspace_min) and np.all(position < tool.workspace_max)


def test_fingers_close_on_each_other_at_the_tool(model):
    data = mujoco.MjData(model)
    pads = [i for i in range(model.ngeom) if model.geom_condim[i] == 4 and model.geom_contype[i] == 2]
    assert len(pads) == 2
    gaps = []
    for opening in (0.015, 0.037):
        data.joint("gripper").qpos[0] = data.joint("right_finger").qpos[0] = opening
        mujoco.mj_forward(model, data)
        gaps.append(mujoco.mj_geomDistance(model, data, *pads, 0.2, np.zeros(6)))
        middle = data.geom_xpos[pads].mean(axis=0)
        assert np.linalg.norm(middle - data.site("tool").xpos) < 0.010
    np.testing.assert_allclose(gaps, [0.0, 0.044], atol=1e-6)
