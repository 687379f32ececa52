"""Actions at other times: joints and positions on a smooth curve, rotations on the great circle, grippers in steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tool_pose import ToolStates, join, split

Floats = NDArray[np.float64]


def resample(actions: ArrayLike, times: ArrayLike, at: ArrayLike, profile: Profile) -> Floats:
    """Return actions [K, D] at the times ``at`` [K] for actions [T, D] in the policy's units due at ``times`` [T].

    Joint channels and tool positions follow a cubic that overshoots no waypoint, as the timeline does, rotations the
    great circle; a tool's gripper keeps the value of the waypoint before. Before the first waypoint and after the last
    the path stands.

    Args:
        actions: in the policy's units, T at least 1.
        times: strictly increasing, in any unit, that of ``at``.

    Raises:
        ValueError: a rotation has no direction.
    """
    values, knots = np.asarray(actions, dtype=np.float64), np.asarray(times, dtype=np.float64)
    where = np.clip(np.asarray(at, dtype=np.float64), knots[0], knots[-1])
    if len(knots) == 1:
        return np.repeat(values, len(where), axis=0)
    if not profile.action_spec.is_end_effector:
        smooth: Floats = PchipInterpolator(knots, values, axis=0)(where)
        return smooth
    before = last_before(knots, where)
    tools = {
        name: ToolStates(states.poses.between(knots, where), states.gripper[before])
        for name, states in split(values, profile).items()
    }
    return join(tools, profile)


def last_before(knots: Floats, at: Floats) -> NDArray[np.intp]:
    """Which of the times ``knots`` [T] is the last at or before each of ``at`` [K]; the first where none is."""
    return np.maximum(np.searchsorted(knots, at, side="right") - 1, 0)
