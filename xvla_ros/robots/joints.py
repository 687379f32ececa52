# SPDX-License-Identifier: Apache-2.0
"""Joint vectors in policy order: between ROS units (rad, m) and the policy's, and their limits as arrays.

policy = ROS * scale + offset, joint by joint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.robots.profile import Profile


def to_policy(positions: ArrayLike, profile: Profile) -> NDArray[np.float64]:
    """Return ROS positions [..., J] (rad or m, in policy order) in the policy's units.

    Raises:
        ValueError: when the last axis is not the number of the profile's joints.
    """
    values = ensure_width(positions, profile)
    return values * _column(profile, "scale") + _column(profile, "offset")


def from_policy(values: ArrayLike, profile: Profile) -> NDArray[np.float64]:
    """Return values [..., J] in the policy's units as ROS positions (rad or m, in policy order).

    Raises:
        ValueError: when the last axis is not the number of the profile's joints.
    """
    return (ensure_width(values, profile) - _column(profile, "offset")) / _column(profile, "scale")


def gripper_joints(profile: Profile) -> tuple[int, ...]:
    """Return the indices in ``policy_order`` of the joints that are grippers.

    So say tools, the action mode, the joints themselves, or the interface that they are commanded by.
    """
    order, spec, commands = profile.joints.policy_order, profile.action_spec, profile.commands
    named = {name for name, joint in profile.joints.by_name.items() if joint.gripper}
    for group in commands.groups:
        if commands.kind_of(group).is_gripper:
            named |= set(commands.by_name[group].joints)
    if spec.is_end_effector:
        named |= {tool.gripper.joint for tool in profile.tools.values()}
    else:
        named |= {order[index] for index in spec.gripper if index < len(order)}
    return tuple(index for index, name in enumerate(order) if name in named)


def ensure_width(values: ArrayLike, profile: Profile) -> NDArray[np.float64]:
    """Return values [..., J], one for each joint of a profile, as an array.

    Raises:
        ValueError: when the last axis is not the number of the profile's joints.
    """
    array, joints = np.asarray(values, dtype=np.float64), len(profile.joints.policy_order)
    if array.shape[-1:] != (joints,):
        raise ValueError(
            f"{profile.name}: got an array of shape {list(array.shape)}, expected [..., {joints}], "
            "one value for each joint of policy_order"
        )
    return array


def _column(profile: Profile, setting: str) -> NDArray[np.float64]:
    return np.array([getattr(joint, setting) for joint in profile.joints.ordered], dtype=np.float64)


@dataclass(frozen=True)
class JointLimits:
    """Limits of J joints in policy order.

    Attributes:
        joints: J policy joint names.
        lower, upper: float64 [J], rad or m.
        max_velocity: float64 [J], rad/s or m/s.
        max_acceleration: float64 [J], rad/s² or m/s².
        max_jerk: float64 [J], rad/s³ or m/s³, infinite where the profile sets none.
    """

    joints: tuple[str, ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    max_velocity: NDArray[np.float64]
    max_acceleration: NDArray[np.float64]
    max_jerk: NDArray[np.float64]

    @classmethod
    def of(cls, profile: Profile) -> JointLimits:
        """Return the limits of a profile's joints; the arrays are read-only."""
        names = ("lower", "upper", "max_velocity", "max_acceleration", "max_jerk")
        arrays = {name: _column(profile, name) for name in names}
        arrays["max_jerk"][arrays["max_jerk"] == 0.0] = np.inf
        for array in arrays.values():
            array.setflags(write=False)
        return cls(profile.joints.policy_order, **arrays)

    def slowed(self, speed: float) -> JointLimits:
        """Return the limits with ``speed`` (0 to 1) of velocity, acceleration and jerk; the time to brake stays."""
        fastest = {name: getattr(self, name) * speed for name in ("max_velocity", "max_acceleration", "max_jerk")}
        return replace(self, **fastest)
