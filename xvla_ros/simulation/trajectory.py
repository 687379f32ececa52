"""A joint trajectory as a controller receives it, and how it is sampled between its points.

Positions in rad, velocities in rad/s, accelerations in rad/s²; all times are integer nanoseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NANO = 1e-9


@dataclass(frozen=True)
class TrajectoryPoint:
    """One point of a trajectory message; a sequence that is not given is empty.

    ``time_from_start`` in ns after the trajectory's start.
    """

    time_from_start: int
    positions: tuple[float, ...]
    velocities: tuple[float, ...] = ()
    accelerations: tuple[float, ...] = ()
    effort: tuple[float, ...] = ()


@dataclass(frozen=True)
class JointTrajectory:
    """A trajectory message: ``stamp`` is its start in ns of ROS time, 0 meaning as soon as it is received."""

    joint_names: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]
    stamp: int = 0


@dataclass(frozen=True)
class Knot:
    """A state at a time; without velocities it is met on a straight line, with them on a cubic, and with
    accelerations too on a quintic."""

    time: int
    positions: Array
    velocities: Array | None = None
    accelerations: Array | None = None


@dataclass(frozen=True)
class Setpoint:
    """What the controller asks of the joints at one instant."""

    positions: Array
    velocities: Array


@dataclass(frozen=True)
class Spline:
    """A ramp-in from the state before the trajectory, then the trajectory's points, then its last point for ever.

    Attributes:
        before: the state from which the first point is approached, at the time the trajectory was taken up. It only
            counts until the first point is due, so that a trajectory which started in the past is joined midway.
        knots: the points, strictly increasing in time.
    """

    before: Knot
    knots: tuple[Knot, ...]
    _times: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_times", tuple(knot.time for knot in self.knots))

    def sample(self, now: int) -> Setpoint:
        """The setpoint at ``now`` ns."""
        following = bisect_right(self._times, now)
        if following == len(self.knots):
            return at_rest(self.knots[-1].positions)
        start = self.knots[following - 1] if following else self.before
        return interpolate(start, self.knots[following], now)


def at_rest(positions: Array) -> Setpoint:
    """A setpoint that holds ``positions``."""
    return Setpoint(positions, np.zeros_like(positions))


def interpolate(start: Knot, end: Knot, now: int) -> Setpoint:
    """The setpoint between two knots by the polynomial of the derivatives that both of them give.

    As joint_trajectory_controller does: linear for positions, cubic with velocities, quintic with accelerations.
    """
    duration = (end.time - start.time) * NANO
    elapsed = (now - start.time) * NANO
    if duration <= 0.0:
        return at_rest(end.positions)
    coefficients = _polynomial(start, end, duration)
    powers = elapsed ** np.arange(len(coefficients))
    slopes = np.arange(1, len(coefficients)) * powers[:-1]
    return Setpoint(powers @ coefficients, slopes @ coefficients[1:])


def _polynomial(start: Knot, end: Knot, duration: float) -> Array:
    """Coefficients [order + 1, joints] in rising powers of the seconds since ``start``."""
    t, p0, change = duration, start.positions, end.positions - start.positions
    if start.velocities is None or end.velocities is None:
        return np.stack([p0, change / t])
    v0, v1 = start.velocities, end.velocities
    if start.accelerations is None or end.accelerations is None:
        return np.stack([p0, v0, (3 * change / t - 2 * v0 - v1) / t, (v0 + v1 - 2 * change / t) / t**2])
    a0, a1 = start.accelerations, end.accelerations
    return np.stack(
        [
            p0,
            v0,
            a0 / 2,
            (20 * change - (8 * v1 + 12 * v0) * t - (3 * a0 - a1) * t**2) / (2 * t**3),
            (-30 * change + (14 * v1 + 16 * v0) * t + (3 * a0 - 2 * a1) * t**2) / (2 * t**4),
            (12 * change - 6 * (v1 + v0) * t + (a1 - a0) * t**2) / (2 * t**5),
        ]
    )
