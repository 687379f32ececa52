"""From joint positions to the state a policy reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.robots import tool_pose
from xvla_ros.robots.kinematics.poses import Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tool_arm import ToolArm, tool_arms
from xvla_ros.robots.units import to_policy

Floats = NDArray[np.float64]


class StateEncoder:
    """Writes joint positions as the policy's state: joints in its units, or tool poses by forward kinematics.

    Args:
        profile: the robot.
        arms: its arms, to share them with a ``Decoder``; None makes them from the URDFs the profile names.

    Raises:
        KinematicsError: the profile has tools and their arms cannot be had.
    """

    def __init__(self, profile: Profile, arms: Mapping[str, ToolArm] | None = None) -> None:
        self._profile = profile
        self._arms = dict(tool_arms(profile) if arms is None else arms)

    def state(self, positions: ArrayLike) -> Floats:
        """Return the state [..., P] for joint positions [..., J] in rad or m, in ``policy_order``.

        Raises:
            ValueError: when the last axis is not the number of the profile's joints.
        """
        if not self._arms:
            return to_policy(positions, self._profile)
        values = _checked(positions, self._profile)
        poses = self.tool_poses(values)
        states = {
            name: tool_pose.ToolStates(
                poses[name], tool_pose.gripper_state(values[..., arm.gripper], arm.tool.gripper)
            )
            for name, arm in self._arms.items()
        }
        return tool_pose.join(states, self._profile)

    def tool_poses(self, positions: ArrayLike) -> dict[str, Poses]:
        """Return the poses [...] of every tool, tip_link in base_link, for joint positions [..., J]."""
        values = _checked(positions, self._profile)
        return {name: arm.chain.poses(values[..., arm.columns]) for name, arm in self._arms.items()}


def _checked(positions: ArrayLike, profile: Profile) -> Floats:
    values = np.asarray(positions, dtype=np.float64)
    joints = len(profile.joints.policy_order)
    if values.shape[-1:] != (joints,):
        raise ValueError(
            f"{profile.name}: got an array of shape {list(values.shape)}, expected [..., {joints}], "
            "one value for each joint of policy_order"
        )
    return values
