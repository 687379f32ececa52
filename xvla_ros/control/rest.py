"""How an arm comes to rest along the path it is on, in time for every joint's limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xvla_ros.control.clock import S_TO_NS
from xvla_ros.control.motion import Floats
from xvla_ros.control.timeline import slowing
from xvla_ros.control.window import CommandWindow
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.motion_schema import Timing

# A clock that runs down by ``slowing`` brakes at most 3/2 and jerks at most 6 times the mean of its time.
SLOWING_PEAK, SLOWING_JERK, SPARE = 1.5, 6.0, 1.1
STANDING = 1e-3  # rad/s or m/s, slower is at rest


def stopping_time(speeds: Floats, limits: JointLimits, timing: Timing) -> float:
    """Seconds in which every joint can lose its speed [J], between lead and lookahead."""
    braking = SLOWING_PEAK * speeds / limits.max_acceleration
    jerking = np.sqrt(SLOWING_JERK * speeds / limits.max_jerk)
    needed = SPARE * float(np.maximum(braking, jerking).max())
    return float(np.clip(needed, timing.lead, timing.lookahead))


def way_to_rest(
    window: CommandWindow, now: int, limits: JointLimits, timing: Timing
) -> tuple[NDArray[np.int64], Floats]:
    """The rest of ``window``, run ever slower from ROS time ``now`` in ns until the arm stands.

    Returns:
        ROS times int64 [T] in ns, and positions [T, J].
    """
    duration = stopping_time(np.abs(window.velocities).max(axis=0), limits, timing)
    points = max(int(duration * timing.command_rate), 2) + 1
    share = np.linspace(0.0, 1.0, points, dtype=np.float64)
    along = slowing(share)[0] * duration
    positions = np.stack([window.position_at(now + round(s * S_TO_NS)) for s in along])
    return now + np.round(share * duration * S_TO_NS).astype(np.int64), positions
