# SPDX-License-Identifier: Apache-2.0
"""How joints move: states, the cubics that a trajectory controller puts between them, what one command says, brakes.

Brakes bring joints to rest from any state, inside their limits: Ruckig by velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray
from ruckig import ControlInterface, InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

from xvla_ros.robots.joints import JointLimits
from xvla_ros.types import Floats

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class MotionState:
    """Where J joints are and how they move.

    Attributes:
        position, velocity, acceleration: float64 [J], rad or m, and per s and s². The acceleration of a joint without
            a jerk limit may jump and is not read.
    """

    position: Floats
    velocity: Floats
    acceleration: Floats

    @classmethod
    def at_rest(cls, position: Floats) -> MotionState:
        """Return the state of joints that stand at ``position`` [J]."""
        return cls(position.copy(), np.zeros_like(position), np.zeros_like(position))

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.rows()).all())

    def rows(self) -> Floats:
        """Return position, velocity and acceleration as [3, J]."""
        return np.array([self.position, self.velocity, self.acceleration])


@dataclass(frozen=True)
class CommandWindow:
    """What one command message says.

    Between two points a joint is on the cubic of their positions and velocities: that is what
    joint_trajectory_controller makes of them, and where the next window begins.

    Attributes:
        stamp: ROS time in ns from which ``times`` count.
        start: where the controller should be at ``stamp`` and how it should move.
        times: float64 [K] seconds, strictly increasing, the first at least one control period away.
        positions: [K, J] rad or m, in ``policy_order``, inside the position limits.
        velocities, accelerations: [K, J], the last rows zero.
        limited: number of points that a limit moved.
    """

    stamp: int
    start: MotionState
    times: Floats
    positions: Floats
    velocities: Floats
    accelerations: Floats
    limited: int

    def position_at(self, time: int) -> Floats:
        """Return the positions [J] that a controller following this window should have at ROS time ``time`` in ns."""
        return self.state_at(time).position

    def state_at(self, time: int) -> MotionState:
        """Return how a controller following this window should move at ROS time ``time`` in ns.

        The acceleration is the limiter's, linear between two points; that of the cubic would leap at each point.
        """
        at = (time - self.stamp) / 1e9
        if at <= 0.0:
            return self.start
        k = int(np.searchsorted(self.times, at))
        if k >= len(self.times):
            return MotionState.at_rest(self.positions[-1])
        before, since = (self._point(k - 1), float(self.times[k - 1])) if k else (self.start, 0.0)
        after, duration = self._point(k), float(self.times[k]) - since
        position, velocity = on_cubic(
            at - since, duration, before.position, after.position, before.velocity, after.velocity
        )
        share = (at - since) / duration
        return MotionState(position, velocity, (1 - share) * before.acceleration + share * after.acceleration)

    def seen_from(self, time: int) -> CommandWindow:
        """Return the command for the same path from ROS time ``time`` in ns on; at rest after the end of the path."""
        return self._along(time, self.times, lambda at: self.state_at(at).rows())

    def with_others(self, joints: Sequence[int], other: CommandWindow | None) -> CommandWindow:
        """Return this command with the columns ``joints`` as in ``other``; standing still where that is None."""
        times, chosen = self.times, list(joints)
        if other is not None:
            late = other.times + (other.stamp - self.stamp) / 1e9
            times = np.append(times, late[late > times[-1]])

        def mixed(time: int) -> Floats:
            rows = self.state_at(time).rows()
            still = MotionState.at_rest(self.start.position) if other is None else other.state_at(time)
            rows[:, chosen] = still.rows()[:, chosen]
            return rows

        return self._along(self.stamp, times, mixed)

    def _along(self, stamp: int, times: Floats, rows: Callable[[int], Floats]) -> CommandWindow:
        """Return the command from ``stamp`` on whose rows [3, J] at a ROS time in ns are given."""
        states = np.stack([rows(stamp + ceil(at * 1e9)) for at in times])
        return replace(
            self,
            stamp=stamp,
            start=MotionState(*rows(stamp)),
            times=times,
            positions=states[:, 0],
            velocities=states[:, 1],
            accelerations=states[:, 2],
        )

    def _point(self, k: int) -> MotionState:
        return MotionState(self.positions[k], self.velocities[k], self.accelerations[k])


def window_times(lead: float, lookahead: float, rate: float) -> Floats:
    """Return the times [K] s of a window's points: one per command period, ``lead`` to ``lookahead``, at least two."""
    count = max(int(np.floor((lookahead - lead) * rate + 1e-9)) + 1, 2)
    return lead + np.arange(count) / rate


def on_cubic(at: float, duration: float, p0: Floats, p1: Floats, v0: Floats, v1: Floats) -> tuple[Floats, Floats]:
    """Return position and velocity ``at`` s into a cubic of ``duration`` s."""
    u = at / duration
    u2, u3 = u * u, u * u * u
    position = (
        (2 * u3 - 3 * u2 + 1) * p0
        + (u3 - 2 * u2 + u) * duration * v0
        + (3 * u2 - 2 * u3) * p1
        + (u3 - u2) * duration * v1
    )
    velocity = 6 * (u - u2) * (p1 - p0) / duration + (3 * u2 - 4 * u + 1) * v0 + (3 * u2 - 2 * u) * v1
    return position, velocity


def on_lines(at: Floats, times: Floats, values: Floats) -> Floats:
    """Interpolate ``values`` [T, J] at ``times`` [T] s linearly: return [K, J] ``at`` [K] s, level beyond both ends."""
    return np.stack([np.interp(at, times, column) for column in values.T], axis=1)


def cubic_inside(before: Floats, after: Floats, step: float, low: Floats, high: Floats) -> Flags:
    """Say whether [J] the cubic between two states [3, J], by position and velocity, stays inside if its ends do."""
    first, second = before[0] + before[1] * (step / 3), after[0] - after[1] * (step / 3)
    inside: Flags = (np.minimum(first, second) >= low) & (np.maximum(first, second) <= high)
    if inside.all():  # a cubic stays inside the hull of its Bézier points
        return inside
    # where the velocity a u² + 2 b u + c, in position per step, is zero the joint turns
    c, middle, end = 3 * (first - before[0]), 3 * (second - first), 3 * (after[0] - second)
    a, b = c - 2 * middle + end, middle - c
    q = -(b + np.copysign(np.sqrt(np.maximum(b * b - a * c, 0.0)), b))
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.clip(np.nan_to_num(np.stack([q / a, c / q]), nan=0.0), 0.0, 1.0)
    turns = before[0] + u * (c + u * (b + u * (a / 3)))
    between: Flags = ((turns >= low) & (turns <= high)).all(axis=0)
    return inside | between


def slopes_of(values: Floats, times: Floats) -> Floats:
    """Return derivatives [K, J] by central differences, extrapolated linearly at both ends."""
    slopes = np.empty_like(values)
    slopes[1:-1] = (values[2:] - values[:-2]) / (times[2:] - times[:-2])[:, None]
    slopes[0] = 2 * (values[1] - values[0]) / (times[1] - times[0]) - slopes[1]
    slopes[-1] = 2 * (values[-1] - values[-2]) / (times[-1] - times[-2]) - slopes[-2]
    return slopes


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
        self._bounds: tuple[Floats, Bounds] | None = None  # those asked for last: windows have the same times

    def bounds(self, times: Floats) -> Bounds:
        """Return the limits of a path with points at ``times`` s, less the margins."""
        if self._bounds is not None and np.array_equal(self._bounds[0], times):
            return self._bounds[1]
        limits, longest = self._limits, float(np.diff(times, prepend=0.0).max())
        bulge = np.minimum(VELOCITY_BULGE * limits.max_acceleration * longest, limits.max_velocity / 3)
        velocity = limits.max_velocity - np.where(self.jerky, bulge, 0.0)
        margin = np.minimum(limits.max_acceleration * longest**2 * POSITION_BULGE, limits.max_velocity * longest / 4)
        margin = np.minimum(margin, (limits.upper - limits.lower) / 8)
        bounds = Bounds(limits.lower + margin, limits.upper - margin, velocity, margin)
        self._bounds = times.copy(), bounds
        return bounds

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
