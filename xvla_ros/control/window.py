"""The short horizon that leaves the node: limited positions and velocities over [now + lead, now + lookahead]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.control.limiter import LimitedPath, Limiter, MotionState
from xvla_ros.robots.limits import JointLimits

Floats = NDArray[np.float64]

# A cubic between two knots whose end velocities do not oppose the motion is nowhere faster than the larger of those
# velocities and 1.5 times the mean slope, so slopes within 2/3 of a limit keep the whole curve inside it.
CUBIC_PEAK = 1.5
# A cubic that begins with velocity v and ends at rest is, wherever it ends, never further than v * duration / 3 from
# where its start and its end are: with that much room it overshoots nothing (Fritsch and Carlson 1980).
COAST = 1 / 3


@dataclass(frozen=True)
class CommandWindow:
    """What one command message says.

    Attributes:
        stamp: ROS time in ns from which ``times`` count.
        start: [J] where the controller should be at ``stamp``.
        start_velocity: [J] how fast it should be there.
        times: float64 [K] seconds, strictly increasing, the first at least one control period away.
        positions: [K, J] rad or m, in ``policy_order``, inside the position limits.
        velocities: [K, J], the last row zero.
        limited: number of points that a limit moved.
    """

    stamp: int
    start: Floats
    start_velocity: Floats
    times: Floats
    positions: Floats
    velocities: Floats
    limited: int

    def position_at(self, time: int) -> Floats:
        """Positions [J] that a controller following this window should have at ROS time ``time`` in ns."""
        return self.state_at(time)[0]

    def state_at(self, time: int) -> tuple[Floats, Floats]:
        """Positions and velocities [J] that a controller following this window should have at ROS time ``time``."""
        at = (time - self.stamp) / 1e9
        k = int(np.searchsorted(self.times, at))
        if at <= 0.0:
            return self.start.copy(), self.start_velocity.copy()
        if k >= len(self.times):
            return self.positions[-1].copy(), np.zeros_like(self.start)
        if k == 0:
            return _hermite(at, float(self.times[0]), self.start, self.positions[0], self.start_velocity,
                            self.velocities[0])
        return _hermite(at - float(self.times[k - 1]), float(self.times[k] - self.times[k - 1]),
                        self.positions[k - 1], self.positions[k], self.velocities[k - 1], self.velocities[k])


@dataclass(frozen=True)
class LimitedWindow:
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
        """How a controller following this window should move at ROS time ``time`` in ns."""
        at = (time - self.stamp) / 1e9
        if at <= 0.0:
            return self.start
        k = int(np.searchsorted(self.times, at))
        if k >= len(self.times):
            return MotionState.at_rest(self.positions[-1])
        before, since = (self._state(k - 1), float(self.times[k - 1])) if k else (self.start, 0.0)
        after, duration = self._state(k), float(self.times[k]) - since
        position, velocity = _hermite(
            at - since, duration, before.position, after.position, before.velocity, after.velocity)
        share = (at - since) / duration
        return MotionState(position, velocity, (1 - share) * before.acceleration + share * after.acceleration)

    def _state(self, k: int) -> MotionState:
        return MotionState(self.positions[k], self.velocities[k], self.accelerations[k])


def limited_window(
    stamp: int, start: MotionState, times: Floats, positions: Floats, velocities: Floats, limiter: Limiter
) -> LimitedWindow:
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


def stop_window(stamp: int, start: MotionState, times: Floats, limiter: Limiter) -> LimitedWindow:
    """The window that brings the arm to rest as soon as its limits allow; arguments as of ``limited_window``."""
    return _window(stamp, start, limiter.brake(start, times))


def _window(stamp: int, start: MotionState, path: LimitedPath) -> LimitedWindow:
    return LimitedWindow(
        stamp, start, path.times, path.positions, path.velocities, path.accelerations, path.limited)


def window_times(lead: float, lookahead: float, rate: float) -> Floats:
    """Times [K] s of a window's points: one a command period from ``lead`` to ``lookahead``, at least two."""
    count = max(int(np.floor((lookahead - lead) * rate + 1e-9)) + 1, 2)
    return lead + np.arange(count) / rate


def limit(
    start: Floats, start_velocity: Floats, times: Floats, wanted: Floats, limits: JointLimits
) -> tuple[Floats, int]:
    """Keep a path inside position and velocity limits; return it and how many points were moved.

    Each point goes as far towards the wanted one as the velocity limit lets it from the point before; the first
    counts from ``start``, and less far where that is against ``start_velocity``.
    Near a position limit the path slows down, so that the next window can still stop before it, whenever it begins.
    A start outside the position limits returns inside at the velocity limit and no faster.

    Args:
        start: [J] positions at time 0.
        start_velocity: [J] velocities at time 0.
        times: [K] s after it.
        wanted: [K, J].
    """
    inside = np.clip(wanted, limits.lower, limits.upper)
    path = np.empty_like(inside)
    lead = float(times[0])
    previous, previous_time = start, 0.0
    for k, time in enumerate(times):
        low, high = _room(previous, float(time) - previous_time, lead, limits)
        if k == 0:
            against = _reach_against(start_velocity, limits) * lead
            low = np.where(start_velocity > 0, np.maximum(low, -against), low)
            high = np.where(start_velocity < 0, np.minimum(high, against), high)
        step = np.clip(inside[k] - previous, low, high)
        path[k] = np.clip(previous + step, np.minimum(limits.lower, start), np.maximum(limits.upper, start))
        previous, previous_time = path[k], float(time)
    moved = np.any(np.abs(path - wanted) > 1e-9, axis=1)
    return path, int(moved.sum())


def _room(position: Floats, duration: float, lead: float, limits: JointLimits) -> tuple[Floats, Floats]:
    """The steps [J] down and up that may be made in ``duration`` s: none too fast to be stopped before a limit.

    The next window may begin anywhere on the curve and meets its first point ``lead`` s later; to come to rest there
    it needs ``lead * COAST`` s at its speed, which is up to ``CUBIC_PEAK`` times that of the step.
    """
    reach = limits.max_velocity / CUBIC_PEAK * duration
    share = duration / (duration + CUBIC_PEAK * COAST * lead)
    down = np.minimum(np.maximum(position - limits.lower, 0.0) * share, reach)
    up = np.minimum(np.maximum(limits.upper - position, 0.0) * share, reach)
    return -down, up


def _reach_against(velocity: Floats, limits: JointLimits) -> Floats:
    """The mean speed [J] at which a joint that moves may be sent back.

    The cubic that turns round from speed v and goes back at a mean speed s is at most (v + 3 s)² / (3 v + 6 s) fast;
    solved for s where that is the limit.
    """
    highest = limits.max_velocity
    speed = np.minimum(np.abs(velocity), highest)
    mean: Floats = (highest - speed + np.sqrt(highest * (highest + speed))) / 3
    return mean


def command_window(
    stamp: int, start: Floats, start_velocity: Floats, times: Floats, wanted: Floats, limits: JointLimits
) -> CommandWindow:
    """Limit a planned path and give it velocities: the one way from a plan to a command.

    Args:
        stamp: ROS time in ns.
        start, start_velocity: [J] where the controller should be at ``stamp``, and how fast.
        times: [K] s after it.
        wanted: [K, J] planned positions.

    Raises:
        ValueError: a planned position is not finite.
    """
    if not (np.isfinite(wanted).all() and np.isfinite(start).all() and np.isfinite(start_velocity).all()):
        raise ValueError("planned positions hold NaN or Inf; nothing is sent")
    path, limited = limit(start, start_velocity, times, wanted, limits)
    return CommandWindow(
        stamp, start.copy(), start_velocity.copy(), times, path, velocities(start, times, path), limited)


def velocities(start: Floats, times: Floats, path: Floats) -> Floats:
    """Knot velocities [K, J] by finite difference that make no cubic overshoot its knots; the last row is zero.

    The harmonic mean of the slopes on both sides where they agree in sign, else zero (Fritsch and Carlson 1980), with
    the slope from ``start`` (at time 0) before the first knot.
    """
    knots = np.concatenate([start[None], path])
    slopes = np.diff(knots, axis=0) / np.diff(np.concatenate([[0.0], times]))[:, None]
    result = np.zeros_like(path)
    before, after = slopes[:-1], slopes[1:]
    same_way = before * after > 0
    both = np.where(same_way, before + after, 1.0)
    result[:-1] = np.where(same_way, 2 * before * after / both, 0.0)
    return result


def _hermite(
    at: float, duration: float, p0: Floats, p1: Floats, v0: Floats, v1: Floats
) -> tuple[Floats, Floats]:
    """Position and velocity ``at`` s into a cubic of ``duration`` s."""
    u = at / duration
    u2, u3 = u * u, u * u * u
    position = (
        (2 * u3 - 3 * u2 + 1) * p0 + (u3 - 2 * u2 + u) * duration * v0 + (3 * u2 - 2 * u3) * p1
        + (u3 - u2) * duration * v1
    )
    velocity = 6 * (u - u2) * (p1 - p0) / duration + (3 * u2 - 4 * u + 1) * v0 + (3 * u2 - 2 * u) * v1
    return position, velocity
