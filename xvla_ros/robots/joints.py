"""Joint vectors in policy order: between ROS units (rad, m) and the policy's, and their limits as arrays.

policy = ROS * scale + offset, joint by joint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.robots.profile import Profile


def to_policy(positions: ArrayLike, profile: Profile) -> NDArray[np.float64]:
    """Return ROS positions [..., J] (rad or m, in policy order) in the policy's units.

    Raises:
        ValueError: when the last axis is not the number of the profile's joints.
    """
    values, scale, offset = _prepare(positions, profile)
    return values * scale + offset


def from_policy(values: ArrayLike, profile: Profile) -> NDArray[np.float64]:
    """Return values [..., J] in the policy's units as ROS positions (rad or m, in policy order).

    Raises:
        ValueError: when the last axis is not the number of the profile's joints.
    """
    values, scale, offset = _prepare(values, profile)
    return (values - offset) / scale


def _prepare(
    values: ArrayLike, profile: Profile
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    array = np.asarray(values, dtype=np.float64)
    joints = profile.joints.ordered
    if array.ndim == 0 or array.shape[-1] != len(joints):
        raise ValueError(
            f"{profile.name}: got an array of shape {list(array.shape)}, expected [..., {len(joints)}], "
            "one value for each joint of policy_order"
        )
    scale = np.array([joint.scale for joint in joints], dtype=np.float64)
    offset = np.array([joint.offset for joint in joints], dtype=np.float64)
    return array, scale, offset


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
        joints = profile.joints.ordered
        return cls(
            joints=profile.joints.policy_order,
            lower=_frozen([joint.lower for joint in joints]),
            upper=_frozen([joint.upper for joint in joints]),
            max_velocity=_frozen([joint.max_velocity for joint in joints]),
            max_acceleration=_frozen([joint.max_acceleration for joint in joints]),
            max_jerk=_frozen([joint.max_jerk or np.inf for joint in joints]),
        )


def _frozen(values: list[float]) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array
