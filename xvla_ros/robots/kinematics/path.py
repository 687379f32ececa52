"""A path of tool poses as a path of joints that leaps nowhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from xvla_ros.robots.kinematics.chain import Poses
from xvla_ros.robots.kinematics.inverse import InverseKinematics, Solution
from xvla_ros.types import Floats

REACHED, NEAR, LAGGING, HELD = "reached", "near", "lagging", "held"
STATUSES = (REACHED, NEAR, LAGGING, HELD)
ON_PATH = 1e-3  # m off the path that a point between two waypoints may be


@dataclass(frozen=True, eq=False)
class FollowedPath:
    """Joint positions along T waypoints, and how well each meets its pose.

    Attributes:
        positions: float64 [T, J], rad or m.
        status: T times ``reached``; ``near``: the nearest reachable pose, within the tolerances; ``lagging``: as far
            as the speed of the joints lets them get in time; or ``held``: out of reach, the joints stay.
        position_error: float64 [T], m between tool and waypoint.
        rotation_error: float64 [T], rad.
    """

    positions: Floats
    status: tuple[str, ...]
    position_error: Floats
    rotation_error: Floats

    def count(self, *statuses: str) -> int:
        """How many waypoints have one of ``statuses``."""
        return sum(status in statuses for status in self.status)


class PathFollower:
    """Solves waypoint after waypoint, each from the one before.

    From one waypoint to the next no joint goes further than its speed allows in the time between, so a singularity or
    another branch makes the tool lag and never makes a joint leap.

    Args:
        inverse: of the arm.
        max_velocity: [J] rad/s or m/s.
        position_tolerance: m within which the nearest reachable pose stands for one out of reach.
        rotation_tolerance: rad, the same.
    """

    def __init__(
        self,
        inverse: InverseKinematics,
        max_velocity: ArrayLike,
        *,
        position_tolerance: float = 0.02,
        rotation_tolerance: float = 0.2,
    ) -> None:
        self.inverse = inverse
        self.max_velocity = np.asarray(max_velocity, dtype=np.float64)
        self.position_tolerance = position_tolerance
        self.rotation_tolerance = rotation_tolerance

    def follow(self, targets: Poses, durations: ArrayLike, start: ArrayLike | None) -> FollowedPath:
        """Return the joints for T targets in the base link.

        Args:
            targets: T poses.
            durations: [T] s from the waypoint before, the first from ``start``.
            start: [J] where the joints are; None, as for a recording without joints, lets the first waypoint be
                anywhere.
        """
        times = np.asarray(durations, dtype=np.float64)
        previous = None if start is None else np.asarray(start, dtype=np.float64)
        positions: list[Floats] = []
        status: list[str] = []
        errors: list[tuple[float, float]] = []
        for i in range(len(targets)):
            reach = None if previous is None else self.max_velocity * times[i]
            found, how = self._next(targets[i], previous, reach)
            positions.append(found.positions)
            status.append(how)
            errors.append((found.position_error, found.rotation_error))
            previous = found.positions
        off = np.array(errors, dtype=np.float64).reshape(-1, 2)
        joints = np.array(positions, dtype=np.float64).reshape(-1, len(self.inverse.chain.joints))
        return FollowedPath(joints, tuple(status), off[:, 0], off[:, 1])

    def between(self, positions: Floats, times: ArrayLike, at: ArrayLike) -> Floats:
        """Return joints [K, J] at times ``at``, with the tool on the path of poses through its waypoints.

        A straight way of the joints bends that of the tool, the more the further waypoints are apart. Each point is
        solved from the curve through the waypoints' joints; where one cannot be, or its joints would have to leave that
        curve further than their speed lets them return from, the curve stays from waypoint to waypoint.

        Args:
            positions: [T, J] rad or m of the waypoints, as ``follow`` gave them.
            times: [T] s of the waypoints, strictly increasing.
            at: [K] s, within ``times``.
        """
        knots, where = np.asarray(times, dtype=np.float64), np.asarray(at, dtype=np.float64)
        if len(knots) == 1:
            return np.repeat(positions, len(where), axis=0)
        curve: Floats = PchipInterpolator(knots, positions, axis=0)(where)
        wanted = self.inverse.chain.poses(positions).between(knots, where)
        segment = np.clip(np.searchsorted(knots, where, side="right") - 1, 0, len(knots) - 2)
        room = self.max_velocity * np.diff(knots)[segment, None] / 2
        solved, lost = curve.copy(), set()
        for i in np.flatnonzero(~np.isin(where, knots)):
            found = self.inverse.solve(wanted[int(i)], curve[i], homeward=False)
            solved[i] = found.positions
            is_on_path = found.position_error <= ON_PATH and found.rotation_error <= self.rotation_tolerance
            if not is_on_path or np.any(np.abs(found.positions - curve[i]) > room[i]):
                lost.add(int(segment[i]))
        back = np.isin(segment, list(lost))
        solved[back] = curve[back]
        return solved

    def _next(self, target: Poses, previous: Floats | None, reach: Floats | None) -> tuple[Solution, str]:
        if previous is None or reach is None:
            found = self.inverse.solve_cold(target)
            return found, self._how_well(found)
        found = self.inverse.solve(target, previous)
        how = self._how_well(found)
        if how == HELD:
            return self._stay(target, previous), HELD
        if np.all(np.abs(found.positions - previous) <= reach):
            return found, how
        # as close as the joints come in time, which may still be close enough
        bounded = self.inverse.solve(
            target, np.clip(found.positions, previous - reach, previous + reach),
            lower=previous - reach, upper=previous + reach,
        )
        within = self._how_well(bounded)
        return bounded, LAGGING if within == HELD else within

    def _how_well(self, found: Solution) -> str:
        if found.converged:
            return REACHED
        close = found.position_error <= self.position_tolerance and found.rotation_error <= self.rotation_tolerance
        return NEAR if close else HELD

    def _stay(self, target: Poses, previous: Floats) -> Solution:
        here = self.inverse.chain.poses(previous)
        trace = float(np.sum(here.rotations * target.rotations))
        turned = float(np.arccos(np.clip((trace - 1.0) / 2.0, -1.0, 1.0)))
        return Solution(previous, float(np.linalg.norm(here.positions - target.positions)), turned, False, 0)
