# SPDX-License-Identifier: Apache-2.0
"""The G1 of boxes and rods against the kinematics of its URDF."""

import mujoco
import numpy as np
import pytest

from xvla_ros.simulation import agibot
from xvla_ros.simulation.parts import JointFigures
from xvla_ros.simulation.scenes import AGIBOT_LIFT, AGIBOT_PITCH, AGIBOT_TABLE, build_scene

# Flanges at home in arm_base_link, as computed from the vendor's URDF.
HOME_FLANGES = {"left_": (0.344, 0.300, 0.039), "right_": (0.344, -0.302, 0.038)}
SIDES = tuple(HOME_FLANGES)


@pytest.fixture(scope="module")
def model():
    return build_scene("agibot", 1 / 600).model


def names(side):
    return [f"{side}joint{number}" for number in range(1, 8)]


@pytest.fixture
def pose(model, site_pose):
    def measure(side, angles, site="flange"):
        return site_pose(model, side + site, dict(zip(names(side), angles, strict=True)), "arm_base")

    return measure


@pytest.mark.parametrize("side", SIDES)
def test_flanges_at_home_are_the_urdfs(pose, side):
    np.testing.assert_allclose(pose(side, agibot.HOME[side])[0], HOME_FLANGES[side], atol=5e-4)


@pytest.mark.parametrize("side", SIDES)
def test_kinematics_agree_with_the_table_to_ten_micrometres(pose, chain, side):
    shoulder = JointFigures(*agibot.SHOULDERS[side], 0.0, 0.0)
    limits = [(figures.lower, figures.upper) for figures in agibot.JOINTS[side]]
    for angles in np.random.default_rng(0).uniform(*np.transpose(limits), size=(50, 7)):
        for site, frames in (("flange", []), ("tool", [(agibot.GRIPPER_CENTRE, (0.0, 0.0, 0.0))])):
            expected = chain([shoulder, *agibot.JOINTS[side]], [0.0, *angles], frames)
            for found, wanted in zip(pose(side, angles, site), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_torso_stands_on_the_floor_lifted_and_leaning(model):
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    chest = data.body("arm_base")
    up = 0.305 * np.array([np.sin(AGIBOT_PITCH), 0.0, np.cos(AGIBOT_PITCH)])
    np.testing.assert_allclose(chest.xpos, np.array([0.131, 0.0, 0.6485 + AGIBOT_LIFT - AGIBOT_TABLE]) + up, atol=1e-6)
    np.testing.assert_allclose(chest.xmat.reshape(3, 3)[:, 2], up / 0.305, atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_fingers_close_on_each_other_at_the_gripper_centre(model, side):
    data = mujoco.MjData(model)
    bit = {"left_": 2, "right_": 4}[side]
    pads = [i for i in range(model.ngeom) if model.geom_condim[i] == 4 and model.geom_contype[i] == bit]
    gaps = []
    for opening in (0.0, agibot.GRIPPER_OPEN):
        for finger in ("gripper", "other_finger"):
            data.joint(side + finger).qpos[0] = opening
        mujoco.mj_forward(model, data)
        gaps.append(mujoco.mj_geomDistance(model, data, *pads, 0.3, np.zeros(6)))
        if opening == 0.0:
            middle = data.geom_xpos[pads].mean(axis=0)
            assert np.linalg.norm(middle - data.site(f"{side}tool").xpos) < 0.015
    assert abs(gaps[0]) < 1e-6
    assert 0.07 < gaps[1] < 0.2
