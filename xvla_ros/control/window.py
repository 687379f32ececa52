"""The short horizon that leaves the node: limited motion over [now + lead, now + lookahead]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from xvla_ros.control.limiter import LimitedPath, Limiter
from xvla_ros.control.motion import Floats, MotionState, on_cubic


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
        """Positions [J] that a controller following this window should have at ROS time ``time`` in ns."""
        return self.state_at(time).position

    def state_at(self, time: int) -> MotionState:
        """How a controller following this window should move at ROS time ``time`` in ns.

        The acceleration is that of the limiter, evenly between two points; a cubic's own leaps at each point.
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
            at - since, duration, before.position, after.position, before.velocity, after.velocity)
        share = (at - since) / duration
        return MotionState(position, velocity, (1 - share) * before.acceleration + share * after.acceleration)

    def seen_from(self, time: int) -> CommandWindow:
        """The command that leads along the same path from ROS time ``time`` in ns on, at rest where that has ended."""
        states = np.stack([self.state_at(time + ceil(at * 1e9)).rows() for at in self.times])
        return replace(self, stamp=time, start=self.state_at(time), positions=states[:, 0], velocities=states[:, 1],
                       accelerations=states[:, 2])

    def with_others(self, joints: Sequence[int], other: CommandWindow | None) -> CommandWindow:
        """This command, but for the columns ``joints``, which go on by ``other``, or stand still where that is None."""
        times, chosen = self.times, list(joints)
        if other is not None:
            late = other.times + (other.stamp - self.stamp) / 1e9
            times = np.append(times, late[late > times[-1]])

        def mixed(time: int) -> Floats:
            rows = self.state_at(time).rows()
            still = MotionState.at_rest(self.start.position) if other is None else other.state_at(time)
            rows[:, chosen] = still.rows()[:, chosen]
            return rows

        states = np.stack([mixed(self.stamp + ceil(at * 1e9)) for at in times])
        return replace(self, start=MotionState(*mixed(self.stamp)), times=times, positions=states[:, 0],
                       velocities=states[:, 1], accelerations=states[:, 2])

    def _point(self, k: int) -> MotionState:
        return MotionState(self.positions[k], self.velocities[k], self.accelerations[k])


def window_times(lead: float, lookahead: float, rate: float) -> Floats:
    """Times [K] s of a window's points: one a command period from ``lead`` to ``lookahead``, at least two."""
    count = max(int(np.floor((lookahead - lead) * rate + 1e-9)) + 1, 2)
    return lead + np.arange(count) / rate


def command_window(
    stamp: int, start: MotionState, times: Floats, positions: Floats, velocities: Floats, limiter: Limiter
) -> CommandWindow:
    """Limit a plan: the one way from a plan to a command.

    Args:
        stamp: ROS time in ns.
        start: where the controller should be at ``stamp`` and how it should move.
        times: [K] s after it.
        positions, velocities: [K, J] of the plan at ``times``.
        limiter: of the robot's joints.

    Raises:
        ValueError: a number is not finite.
    """
    return _window(stamp, start, limiter.follow(start, times, positions, velocities))


def brake_window(stamp: int, start: MotionState, times: Floats, limiter: Limiter) -> CommandWindow:
    """The window that brings the arm to rest as soon as its limits allow; arguments as of ``command_window``."""
    return _window(stamp, start, limiter.brake(start, times))


def _window(stamp: int, start: MotionState, path: LimitedPath) -> CommandWindow:
    return CommandWindow(stamp, start, path.times, path.positions, path.velocities, path.accelerations, path.limited)
