# SPDX-License-Identifier: Apache-2.0
"""joint_trajectory_controller of ros2_controllers (Jazzy 4.42, Kilted 5.17), simulated.

Here is what it refuses, how it starts, how it interpolates and what it holds. Positions in rad, times in integer
nanoseconds of ROS time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
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
    """A state at a time.

    It is reached on a straight line without velocities, on a cubic with them, on a quintic with accelerations too.
    """

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
        """Return the setpoint at ``now`` ns."""
        following = bisect_right(self._times, now)
        if following == len(self.knots):
            return at_rest(self.knots[-1].positions)
        start = self.knots[following - 1] if following else self.before
        return interpolate(start, self.knots[following], now)


def at_rest(positions: Array) -> Setpoint:
    """Return a setpoint that holds ``positions``."""
    return Setpoint(positions, np.zeros_like(positions))


def interpolate(start: Knot, end: Knot, now: int) -> Setpoint:
    """Return the setpoint between two knots, by a polynomial through all derivatives that both of them give.

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
    """Return the coefficients [order + 1, joints] in rising powers of the seconds since ``start``."""
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


class SetpointController:
    """Holds the last position asked of each joint of a group.

    ``command`` may be called from another thread than ``update``, which takes the positions up.
    """

    def __init__(self, name: str, joints: Sequence[str]) -> None:
        """Make a controller of ``joints``, the names that its messages use, in the order of its setpoints."""
        self.name = name
        self.joints = tuple(joints)
        self.rejections: deque[Rejection] = deque(maxlen=REMEMBERED_REJECTIONS)
        self.rejected = 0
        self.accepted = 0
        self._desired: Array | None = None
        self._pending: dict[str, float] = {}

    def command(self, names: Sequence[str], positions: Sequence[float], now: int) -> Rejection | None:
        """Take positions for the joints ``names``, while the others keep theirs; without names, for all in order.

        A refusal is counted and returned; the previous positions stay in force.
        """
        reason = self._find_fault(names, positions)
        if reason is None:
            self.accepted += 1
            asked = dict(zip(names or self.joints, map(float, positions), strict=True))
            self._pending = self._pending | asked
            return None
        rejection = Rejection(self.name, now, f"{self.name}: {reason}; setpoint refused")
        self.rejected += 1
        self.rejections.append(rejection)
        return rejection

    def update(self, now: int, positions: Array, velocities: Array) -> Setpoint:
        """Return the setpoint at ``now``; before any command it is the position measured first."""
        if self._desired is None:
            self._desired = positions.copy()
        pending = self._pending
        if pending:
            self._desired = np.array([pending.get(j, self._desired[i]) for i, j in enumerate(self.joints)])
        return at_rest(self._desired)

    def hold(self, positions: Array) -> None:
        """Forget what was asked, and hold ``positions``."""
        self._pending = {}
        self._desired = positions.copy()

    def _find_fault(self, names: Sequence[str], positions: Sequence[float]) -> str | None:
        for index, name in enumerate(names):
            if name not in self.joints:
                return f"name[{index}] is {name!r}, expected one of {list(self.joints)}"
        expected = list(names or self.joints)
        if len(positions) != len(expected):
            return f"there are {len(positions)} positions, expected {len(expected)}: one for each of {expected}"
        for name, value in zip(expected, positions, strict=True):
            if not math.isfinite(value):
                return f"joint {name!r}: position is {value}, expected a finite number"
        return None


# The real controller takes a last velocity below float32's epsilon for zero.
ZERO_VELOCITY = 1.2e-7
REMEMBERED_REJECTIONS = 100


@dataclass(frozen=True)
class ControllerOptions:
    """The real controller's parameters of the same names, with its defaults."""

    allow_partial_joints_goal: bool = False
    allow_nonzero_velocity_at_trajectory_end: bool = False
    interpolate_from_desired_state: bool = False


@dataclass(frozen=True)
class Rejection:
    """A trajectory that was refused: by which controller, when (ns) and why."""

    controller: str
    time: int
    reason: str


class JointTrajectoryController:
    """Turns trajectories into setpoints for the joints of one group.

    ``command`` may be called from another thread than ``update``: like the real controller's buffer, it only leaves
    the trajectory for the next update to take up.
    """

    def __init__(self, name: str, joints: Sequence[str], options: ControllerOptions | None = None) -> None:
        """Make a controller of ``joints``, the names that its messages use, in the order of its setpoints."""
        self.name = name
        self.joints = tuple(joints)
        self.options = options or ControllerOptions()
        self.rejections: deque[Rejection] = deque(maxlen=REMEMBERED_REJECTIONS)
        self.rejected = 0
        self.accepted = 0
        self._pending: JointTrajectory | None = None
        self._spline: Spline | None = None
        self._desired: Setpoint | None = None

    def command(self, trajectory: JointTrajectory, now: int) -> Rejection | None:
        """Take ``trajectory``, which replaces the current one at the next update, or refuse it.

        A refusal is counted and returned; the running trajectory goes on.
        """
        reason = find_fault(trajectory, self.joints, self.options, now)
        if reason is None:
            self.accepted += 1
            self._pending = trajectory
            return None
        rejection = Rejection(self.name, now, f"{self.name}: {reason}; trajectory refused")
        self.rejected += 1
        self.rejections.append(rejection)
        return rejection

    def update(self, now: int, positions: Array, velocities: Array) -> Setpoint:
        """Return the setpoint at ``now``, given the measured state (rad, rad/s, in the order of ``joints``).

        Before any trajectory it is the position measured first.
        """
        if self._desired is None:
            self._desired = at_rest(positions.copy())
        pending, self._pending = self._pending, None
        if pending is not None:
            measured = Setpoint(positions.copy(), velocities.copy())
            start = self._desired if self.options.interpolate_from_desired_state else measured
            self._spline = self._spline_of(pending, now, start)
        if self._spline is not None:
            self._desired = self._spline.sample(now)
        return self._desired

    def hold(self, positions: Array) -> None:
        """Forget every trajectory, and hold ``positions``."""
        self._pending = self._spline = None
        self._desired = at_rest(positions.copy())

    def _spline_of(self, trajectory: JointTrajectory, now: int, start: Setpoint) -> Spline:
        begin = trajectory.stamp or now
        columns = {joint: column for column, joint in enumerate(trajectory.joint_names)}
        order = [columns.get(joint, -1) for joint in self.joints]
        held = self._desired.positions if self._desired is not None else start.positions

        def arrange(values: tuple[float, ...], absent: Array) -> Array | None:
            if not values:
                return None
            return np.array([values[column] if column >= 0 else absent[i] for i, column in enumerate(order)])

        at_zero = np.zeros(len(self.joints))

        def knot(point: TrajectoryPoint) -> Knot:
            places = arrange(point.positions, held)
            return Knot(
                begin + point.time_from_start,
                held if places is None else places,
                arrange(point.velocities, at_zero),
                arrange(point.accelerations, at_zero),
            )

        return Spline(Knot(now, start.positions, start.velocities), tuple(knot(p) for p in trajectory.points))


def find_fault(trajectory: JointTrajectory, joints: Sequence[str], options: ControllerOptions, now: int) -> str | None:
    """Say why a controller of ``joints`` refuses ``trajectory`` at ``now`` ns; None if it takes it.

    Every message names the joint or the point's index, the value found and the value expected.
    """
    return (
        _find_name_fault(trajectory.joint_names, joints, options)
        or _find_point_fault(trajectory)
        or _find_time_fault(trajectory, now)
        or _find_end_fault(trajectory, options)
    )


def _find_name_fault(names: Sequence[str], joints: Sequence[str], options: ControllerOptions) -> str | None:
    if not names:
        return f"joint_names is empty, expected {list(joints)}"
    for index, name in enumerate(names):
        if name not in joints:
            return f"joint_names[{index}] is {name!r}, expected one of {list(joints)}"
    for name, count in Counter(names).items():
        if count > 1:
            return f"joint {name!r} stands {count} times in joint_names, expected 1"
    missing = [joint for joint in joints if joint not in names]
    if missing and not options.allow_partial_joints_goal:
        return (
            f"joint {missing[0]!r} is missing: joint_names has {len(names)} of the controller's {len(joints)} joints "
            f"and allow_partial_joints_goal is false; expected all of {list(joints)}"
        )
    return None


def _find_point_fault(trajectory: JointTrajectory) -> str | None:
    if not trajectory.points:
        return "points is empty, expected at least one point"
    for index, point in enumerate(trajectory.points):
        fault = _find_size_fault(index, point, len(trajectory.joint_names)) or _find_number_fault(
            index, point, trajectory.joint_names
        )
        if fault:
            return fault
    return None


def _find_size_fault(index: int, point: TrajectoryPoint, width: int) -> str | None:
    if not point.positions:
        return f"points[{index}].positions is empty, expected {width} values"
    if point.effort:
        return f"points[{index}].effort has {len(point.effort)} values, expected none: there is no effort interface"
    for key in ("positions", "velocities", "accelerations"):
        size = len(getattr(point, key))
        if size not in ((width,) if key == "positions" else (0, width)):
            return f"points[{index}].{key} has {size} values, expected {width}, one for each of joint_names"
    return None


def _find_number_fault(index: int, point: TrajectoryPoint, names: Sequence[str]) -> str | None:
    for key in ("positions", "velocities", "accelerations"):
        for name, value in zip(names, getattr(point, key), strict=False):
            if not math.isfinite(value):
                return f"joint {name!r}: points[{index}].{key} is {value}, expected a finite number"
    return None


def _find_time_fault(trajectory: JointTrajectory, now: int) -> str | None:
    times = [point.time_from_start for point in trajectory.points]
    if times[0] < 0:
        return f"points[0].time_from_start is {_seconds(times[0])}, expected 0 s or more"
    for index in range(1, len(times)):
        if times[index] <= times[index - 1]:
            return (
                f"points[{index}].time_from_start is {_seconds(times[index])}, expected more than "
                f"{_seconds(times[index - 1])} of points[{index - 1}]: times must increase strictly"
            )
    end = trajectory.stamp + times[-1]
    if trajectory.stamp and end < now:
        return (
            f"the last point (points[{len(times) - 1}]) is due at {_seconds(end)}, expected now ({_seconds(now)}) "
            "or later: the trajectory is completely in the past"
        )
    return None


def _find_end_fault(trajectory: JointTrajectory, options: ControllerOptions) -> str | None:
    if options.allow_nonzero_velocity_at_trajectory_end:
        return None
    last = trajectory.points[-1]
    for name, velocity in zip(trajectory.joint_names, last.velocities, strict=False):
        if abs(velocity) > ZERO_VELOCITY:
            return (
                f"joint {name!r}: velocity of the last point (points[{len(trajectory.points) - 1}]) is "
                f"{velocity:g} rad/s, expected 0 rad/s while allow_nonzero_velocity_at_trajectory_end is false"
            )
    return None


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.6f} s"
