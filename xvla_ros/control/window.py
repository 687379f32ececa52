"""The short horizon that leaves the node: limited positions and velocities over [now + lead, now + lookahead]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.robots.limits import JointLimits

Floats = NDArray[np.float64]

# A cubic between two knots whose end velocities do not oppose the motion is nowhere faster than the larger of those
# velocities and 1.5 times the mean slope, so slopes within 2/3 of a limit keep the whole curve inside it.
CUBIC_PEAK = 1.5


@dataclass(frozen=True)
class CommandWindow:
    """What one command message says.

    Attributes:
        stamp: ROS time in ns from which ``times`` count.
        start: [J] where the controller should be at ``stamp``.
        times: float64 [K] seconds, strictly increasing, the first at least one control period away.
        positions: [K, J] rad or m, in ``policy_order``, inside the position limits.
        velocities: [K, J], the last row zero.
        limited: number of points that a limit moved.
    """

    stamp: int
    start: Floats
    times: Floats
    positions: Floats
    velocities: Floats
    limited: int

    def position_at(self, time: int) -> Floats:
        """Positions [J] that a controller following this window should have at ROS time ``time`` in ns."""
        at = (time - self.stamp) / 1e9
        if at <= self.times[0]:
            share = min(max(at / float(self.times[0]), 0.0), 1.0)
            return self.start + share * (self.positions[0] - self.start)
        k = int(np.searchsorted(self.times, at))
        if k >= len(self.times):
            return self.positions[-1].copy()
        return _hermite(
            (at - self.times[k - 1]) / (self.times[k] - self.times[k - 1]),
            self.times[k] - self.times[k - 1],
            self.positions[k - 1], self.positions[k], self.velocities[k - 1], self.velocities[k],
        )


def window_times(lead: float, lookahead: float, rate: float) -> Floats:
    """Times [K] s of a window's points: one a command period from ``lead`` to ``lookahead``, at least two."""
    count = max(int(np.floor((lookahead - lead) * rate + 1e-9)) + 1, 2)
    return lead + np.arange(count) / rate


def limit(start: Floats, times: Floats, wanted: Floats, limits: JointLimits) -> tuple[Floats, int]:
    """Keep a path inside position and velocity limits; return it and how many points were moved.

    Each point goes as far towards the wanted one as the velocity limit lets it from the point before; the first
    counts from ``start``. A start outside the position limits returns inside at the velocity limit and no faster.

    Args:
        start: [J] positions at time 0.
        times: [K] s after it.
        wanted: [K, J].
    """
    inside = np.clip(wanted, limits.lower, limits.upper)
    path = np.empty_like(inside)
    previous, previous_time = start, 0.0
    for k, time in enumerate(times):
        reach = limits.max_velocity / CUBIC_PEAK * (time - previous_time)
        path[k] = previous + np.clip(inside[k] - previous, -reach, reach)
        previous, previous_time = path[k], float(time)
    moved = np.any(np.abs(path - wanted) > 1e-9, axis=1)
    return path, int(moved.sum())


def command_window(stamp: int, start: Floats, times: Floats, wanted: Floats, limits: JointLimits) -> CommandWindow:
    """Limit a planned path and give it velocities: the one way from a plan to a command.

    Args:
        stamp: ROS time in ns.
        start: [J] where the controller should be at ``stamp``.
        times: [K] s after it.
        wanted: [K, J] planned positions.

    Raises:
        ValueError: a planned position is not finite.
    """
    if not (np.isfinite(wanted).all() and np.isfinite(start).all()):
        raise ValueError("planned positions hold NaN or Inf; nothing is sent")
    path, limited = limit(start, times, wanted, limits)
    return CommandWindow(stamp, start.copy(), times, path, velocities(start, times, path), limited)


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


def _hermite(u: float, dt: float, p0: Floats, p1: Floats, v0: Floats, v1: Floats) -> Floats:
    u2, u3 = u * u, u * u * u
    return (
        (2 * u3 - 3 * u2 + 1) * p0 + (u3 - 2 * u2 + u) * dt * v0 + (3 * u2 - 2 * u3) * p1 + (u3 - u2) * dt * v1
    )
