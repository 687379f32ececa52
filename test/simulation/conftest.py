# SPDX-License-Identifier: Apache-2.0
"""Kinematics written out, against which the simulated arms are held."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from xvla_ros.simulation import offscreen

offscreen.choose()  # before any test module imports MuJoCo, which then settles on how it renders

Pose = tuple[np.ndarray, np.ndarray]


def turn_of(rpy) -> np.ndarray:
    """Matrix of fixed-axis roll, pitch, yaw."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def about(axis, angle: float) -> np.ndarray:
    """Matrix of a turn about an axis, by Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.fixture(scope="session")
def chain() -> Callable[[Iterable, Iterable[float], Iterable], Pose]:
    """(joints' figures, angles, fixed frames (xyz, rpy) after them) → position and rotation of the last frame."""

    def multiply(figures, angles, frames=()) -> Pose:
        position, turn = np.zeros(3), np.eye(3)
        for joint, angle in zip(figures, angles, strict=True):
            position = position + turn @ np.array(joint.xyz)
            turn = turn @ turn_of(joint.rpy) @ about(joint.axis, angle)
        for xyz, rpy in frames:
            position, turn = position + turn @ np.array(xyz), turn @ turn_of(rpy)
        return position, turn

    return multiply


@pytest.fixture(scope="session")
def site_pose() -> Callable[..., Pose]:
    """(model, site, joints by name, body it is given in) → position and rotation of the site in MuJoCo."""

    def measure(model, site: str, joints: dict[str, float], base: str) -> Pose:
        import mujoco

        data = mujoco.MjData(model)
        for joint, angle in joints.items():
            data.joint(joint).qpos[0] = angle
        mujoco.mj_forward(model, data)
        frame, tool = data.body(base), data.site(site)
        upright = frame.xmat.reshape(3, 3).T
        return upright @ (tool.xpos - frame.xpos), upright @ tool.xmat.reshape(3, 3)

    return measure
