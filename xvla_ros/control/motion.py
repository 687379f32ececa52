# SPDX-License-Identifier: Apache-2.0
"""How joints move: states, the cubics that a trajectory controller puts between them, and what one command says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

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
