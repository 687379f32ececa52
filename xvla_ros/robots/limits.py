"""The limits of a robot's joints as arrays, for the checks that run at every command."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.robots.profile import Profile


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
