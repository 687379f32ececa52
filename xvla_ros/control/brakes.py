# SPDX-License-Identifier: Apache-2.0
"""How joints come to rest from any state, inside their limits: Ruckig by velocity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ruckig import ControlInterface, InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

from xvla_ros.control.motion import Flags
from xvla_ros.robots.joints import JointLimits
from xvla_ros.types import Floats

# Motion that follows a plan uses this share of the acceleration and jerk limits, and so does the brake that must
# always fit. The rest is for a joint that a controller's cubic left a little off the computed motion.
SHARE, SHARE_JERKY = 0.95, 0.9  # of joints without and with a limit of jerk
# A controller joins two points by a cubic, which bulges out of the computed motion between them: by at most
# 0.0437 * acceleration * duration in velocity (or half the highest velocity) and acceleration * duration² / 32 (or
# velocity * duration / 4) in position, the maxima over all motions of bounded acceleration. Margins of this size
# keep the cubic itself inside the limits.
VELOCITY_BULGE = 0.0437
POSITION_BULGE = 1 / 32
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Brake:
    """How joints come to rest from a state: ``at(s)`` gives [3, J], position, velocity and acceleration.

    Attributes:
        rest: [J] where they stop.
        low, high: [J] lowest and highest position on the way.
        duration: [J] s.
    """

    at: Callable[[float], Floats]
    rest: Floats
    low: Floats
    high: Floats
    duration: Floats


@dataclass(frozen=True)
class Bounds:
    """Limits less the margins for a controller's cubic, [J] each."""

    lower: Floats
    upper: Floats
    velocity: Floats
    margin: Floats


class Brakes:
    """The brakes of one robot's joints.

    Attributes:
        acceleration, jerk: [J] the limits that plans are followed with, a little below the joints' own.
        jerky: [J] which joints have a limit of jerk.
    """

    def __init__(self, limits: JointLimits) -> None:
        self._limits = limits
        joints = len(limits.joints)
        self.jerky: Flags = np.isfinite(limits.max_jerk)
        share = np.where(self.jerky, SHARE_JERKY, SHARE)
        self.acceleration: Floats = limits.max_acceleration * share
        self.jerk: Floats = limits.max_jerk * share
        self._no_jerk = np.full(joints, np.inf)
        self._otg, self._stop = Ruckig(joints), InputParameter(joints)
        self._stop.control_interface = ControlInterface.Velocity
        self._stop.synchronization = Synchronization.No
        self._stop.target_velocity = self._stop.target_acceleration = [0.0] * joints

    def bounds(self, times: Floats) -> Bounds:
        """Return the limits of a path with points at ``times`` s, less the margins."""
        limits, longest = self._limits, float(np.diff(times, prepend=0.0).max())
        bulge = np.minimum(VELOCITY_BULGE * limits.max_acceleration * longest, limits.max_velocity / 3)
        velocity = limits.max_velocity - np.where(self.jerky, bulge, 0.0)
        margin = np.minimum(limits.max_acceleration * longest**2 * POSITION_BULGE, limits.max_velocity * longest / 4)
        margin = np.minimum(margin, (limits.upper - limits.lower) / 8)
        return Bounds(limits.lower + margin, limits.upper - margin, velocity, margin)

    def gentle(self, state: Floats) -> Brake | None:
        """Return the brake from ``state`` [3, J] with the limits used to follow plans; None where Ruckig fails."""
        return self._brake(state, self.acceleration, self.jerk)

    def safe(self, state: Floats, left: float, bounds: Bounds) -> Brake | None:
        """Return each joint's gentlest brake that ends in its bounds within ``left`` s; None where Ruckig fails.

        It tries the limits used to follow plans, then the full limits, and at last no jerk limit. Between two points
        a controller's cubic has another jerk than the one computed here; a joint that this would carry over a
        position limit is stopped by its acceleration alone.
        """
        limits, acceleration, jerk = self._limits, self.acceleration, self.jerk
        brake = self._brake(state, acceleration, jerk)
        for jerk_then, over in ((limits.max_jerk, 0.0), (self._no_jerk, bounds.margin / 2)):
            if brake is None:
                return None
            late = (
                (brake.duration > left + TOLERANCE)
                | (brake.low < np.minimum(bounds.lower - over, state[0]) - TOLERANCE)
                | (brake.high > np.maximum(bounds.upper + over, state[0]) + TOLERANCE)
            )
            if not late.any():
                return brake
            acceleration = np.where(late, limits.max_acceleration, acceleration)
            jerk = np.where(late, jerk_then, jerk)
            brake = self._brake(state, acceleration, jerk) or brake
        return brake

    def _brake(self, state: Floats, acceleration: Floats, jerk: Floats) -> Brake | None:
        stop, position = self._stop, state[0]
        stop.current_position, stop.current_velocity, stop.current_acceleration = state.tolist()
        stop.max_acceleration, stop.max_jerk = acceleration, jerk
        motion = solve(self._otg, stop)
        if motion is None:
            return None
        rest = np.array(motion.at_time(motion.duration)[0])
        turn = _turning_point(state, jerk)
        return Brake(
            lambda time: np.array(motion.at_time(time)),
            rest,
            np.minimum(np.minimum(position, rest), turn),
            np.maximum(np.maximum(position, rest), turn),
            np.array(motion.independent_min_durations),
        )


def _turning_point(state: Floats, jerk: Floats) -> Floats:
    """Return where [J] a joint turns round that brakes too hard to ease off in time; the position of the others."""
    position, velocity, acceleration = state
    eased = acceleration**2 / (2 * jerk)
    turns = (velocity * acceleration < 0) & (eased > np.abs(velocity))
    if not turns.any():
        here: Floats = position
        return here
    jerk = np.where(turns, jerk, 1.0)
    left = np.where(turns, acceleration**2 - 2 * jerk * np.abs(velocity), 0.0)
    time = (np.abs(acceleration) - np.sqrt(left)) / jerk
    easing = -np.sign(acceleration) * jerk
    path = position + velocity * time + acceleration * time**2 / 2 + easing * time**3 / 6
    turn: Floats = np.where(turns, path, position)
    return turn


def solve(otg: Ruckig, asked: InputParameter) -> Trajectory | None:
    """Return the motion that Ruckig finds, None where it finds none."""
    motion = Trajectory(asked.degrees_of_freedom)
    try:
        result = otg.calculate(asked, motion)
    except (RuckigError, ValueError):  # the binding knows no name for some results and raises ValueError
        return None
    return motion if result in (Result.Working, Result.Finished) else None
