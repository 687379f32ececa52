"""Between ROS units (rad, m) and the policy's: policy = ROS * scale + offset, joint by joint."""

from __future__ import annotations

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
