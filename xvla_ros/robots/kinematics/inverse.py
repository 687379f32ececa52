# SPDX-License-Identifier: Apache-2.0
"""Joint positions that bring a tool to a pose: damped least squares within limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from xvla_ros.robots.kinematics.chain import Chain, Poses
from xvla_ros.types import Floats

POSITION_REACHED = 1e-5  # m
ROTATION_REACHED = 1e-4  # rad
ITERATIONS = 60
NUDGES = (0.05, 0.15, 0.3)  # rad towards home, where a solution is held by limits
COLD_SEEDS = 40
MAX_STEP = 0.5  # rad or m of one joint in one iteration; the linear model is not valid further
STANDSTILL = 1e-7  # rad or m; a step smaller than this in every joint ends the search
PATIENCE = 8  # steps that may gain nothing before the search ends
GAIN = 0.99  # a step gains if it brings the squared error below this share of that at the last gain
# The damping falls with the error (Sugihara 2011), so it is strong far from the target and near singularities, where
# errors stay large, and leaves the last steps their quadratic convergence.
DAMPING = 0.05
LEAST_DAMPING = 1e-8
HOMEWARD = 0.1  # share of the way to the home posture that spare joints go in one solution
HOMEWARD_MOST = 0.05  # rad
# Fewer than six joints cannot meet every pose. A rad off the approach axis then weighs as much as 2 cm, one about it
# half of that, so that position comes first and the remaining error is one of angle.
APPROACH_WEIGHT, ROLL_WEIGHT = 0.02, 0.01


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the search for a pose ended.

    Attributes:
        positions: float64 [J], rad or m, within the limits.
        position_error: m between the tool and the target.
        rotation_error: rad between them.
        converged: both are below ``POSITION_REACHED`` and ``ROTATION_REACHED``. Otherwise the positions are the nearest
            that was found.
        iterations: steps taken.
    """

    positions: Floats
    position_error: float
    rotation_error: float
    converged: bool
    iterations: int


class InverseKinematics:
    """Solves for the joints of one chain.

    Gauss-Newton steps on the logarithm of the pose error (its Jacobian is Jlog6 · J), damped, with the joints that lie
    at a limit and would leave it taken out of the step. Redundant arms drift towards ``home`` where the tool does not
    notice.

    Args:
        chain: the joints.
        lower, upper: [J] limits in rad or m; None takes the URDF's.
        home: [J] posture for spare joints and the first cold seed; None is the middle of the limits.
        approach: the direction in which the tool points, in the tip link's frame; used for fewer than six joints.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        home: ArrayLike | None = None,
        approach: ArrayLike = (0.0, 0.0, 1.0),
    ) -> None:
        import pinocchio

        self._pin: Any = pinocchio
        self.chain = chain
        self.lower = chain.lower if lower is None else np.asarray(lower, dtype=np.float64)
        self.upper = chain.upper if upper is None else np.asarray(upper, dtype=np.float64)
        middle = (self.lower + self.upper) / 2
        self.home = middle if home is None else np.clip(np.asarray(home, dtype=np.float64), self.lower, self.upper)
        self._is_redundant = len(chain.joints) > 6
        self._weights = _weights(np.asarray(approach, dtype=np.float64)) if len(chain.joints) < 6 else None

    def solve(
        self,
        target: Poses,
        start: ArrayLike,
        *,
        lower: Floats | None = None,
        upper: Floats | None = None,
        homeward: bool = True,
    ) -> Solution:
        """Return the joint positions for one target near ``start`` [J].

        Args:
            target: one pose, in the base link.
            start: where to begin; the solution stays on its branch.
            lower, upper: [J] bounds narrower than the limits, as for a step that must not be longer.
            homeward: whether the spare joints of a redundant arm go a little towards home.
        """
        wanted = self.chain.placement(target)
        low = self.lower if lower is None else np.maximum(lower, self.lower)
        high = self.upper if upper is None else np.minimum(upper, self.upper)
        begin = np.asarray(start, dtype=np.float64)
        with self.chain.lock:
            found = self._descend(wanted, begin, low, high, homeward)
            if found.converged or not np.any((found.positions <= low) | (found.positions >= high)):
                return found
            # where several limits hold at once, a start a little further inside may still lead to the target
            for nudge in NUDGES:
                inside = begin + np.clip(self.home - begin, -nudge, nudge)
                again = self._descend(wanted, inside, low, high, homeward)
                if again.converged:
                    return again
            return found

    def solve_cold(self, target: Poses, near: ArrayLike | None = None, seeds: int = COLD_SEEDS) -> Solution:
        """Return joint positions for one target, whatever the branch: from ``near``, from home, then from elsewhere.

        The seeds are always the same. The first that converges wins; where none does, the nearest.
        """
        wanted = self.chain.placement(target)
        rng = np.random.default_rng(0)
        others = [self.home, *(rng.uniform(self.lower, self.upper) for _ in range(seeds - 1))]
        with self.chain.lock:
            best = self._descend(
                wanted, others.pop(0) if near is None else np.asarray(near, dtype=np.float64), self.lower, self.upper
            )
            for seed in others:
                if best.converged:
                    break
                found = self._descend(wanted, seed, self.lower, self.upper)
                best = min(best, found, key=self._badness) if not found.converged else found
        return best

    def _badness(self, solution: Solution) -> float:
        rotation_weight = 1.0 if self._weights is None else APPROACH_WEIGHT
        return solution.position_error + rotation_weight * solution.rotation_error

    def _descend(self, wanted: Any, start: Floats, lower: Floats, upper: Floats, homeward: bool = True) -> Solution:
        pin, model, data, tip = self._pin, self.chain.model, self.chain.data, self.chain.tip
        q = np.minimum(np.maximum(start, lower), upper)
        best, least, best_error = q, np.inf, (np.inf, np.inf)
        milestone, reached_at = np.inf, 0
        for iteration in range(ITERATIONS + 1):
            pin.computeJointJacobians(model, data, q)
            difference = wanted.actInv(pin.updateFramePlacement(model, data, tip))
            error = pin.log6(difference).vector
            off, turned = _length(difference.translation), _length(error[3:])
            if off < POSITION_REACHED and turned < ROTATION_REACHED:
                return Solution(q, off, turned, True, iteration)
            jacobian = pin.Jlog6(difference) @ pin.getFrameJacobian(model, data, tip, pin.LOCAL)
            if self._weights is not None:
                error, jacobian = self._weights @ error, self._weights @ jacobian
            size = float(error @ error)
            if size < least:
                best, least, best_error = q, size, (off, turned)
            if size < GAIN * milestone:
                milestone, reached_at = size, iteration
            elif iteration - reached_at >= PATIENCE:
                break
            drift = self._homeward(q) if homeward and self._is_redundant and iteration == 0 else None
            moved = np.minimum(np.maximum(q + _step(jacobian, error, size, q, lower, upper, drift), lower), upper)
            if np.abs(moved - q).max() < STANDSTILL:
                break
            q = moved
        return Solution(best, *best_error, False, iteration)

    def _homeward(self, q: Floats) -> Floats:
        drift: Floats = HOMEWARD * (self.home - q)
        return drift * min(1.0, HOMEWARD_MOST / max(float(np.abs(drift).max()), 1e-12))


def _step(
    jacobian: Floats, error: Floats, size: float, q: Floats, lower: Floats, upper: Floats, drift: Floats | None
) -> Floats:
    """Return the damped step [J] of the joints that are free to go where it leads."""
    damping = (DAMPING * size + LEAST_DAMPING) * np.eye(6)
    step = np.zeros_like(q)
    free: NDArray[np.bool_] | None = None
    while True:
        columns = jacobian if free is None else jacobian * free
        residual = -error if drift is None else -error - columns @ drift
        step = columns.T @ np.linalg.solve(columns @ columns.T + damping, residual)
        if drift is not None:
            step = step + (drift if free is None else drift * free)
        blocked = ((q <= lower) & (step < 0.0)) | ((q >= upper) & (step > 0.0))
        if not blocked.any():
            break
        free = ~blocked if free is None else free & ~blocked
    longest = float(np.abs(step).max())
    return step * (MAX_STEP / longest) if longest > MAX_STEP else step


def _weights(approach: Floats) -> Floats:
    """Return the 6×6 weights of an error: position, then the approach axis, then the turn about it."""
    axis = approach / np.linalg.norm(approach)
    along = np.outer(axis, axis)
    weights = np.eye(6)
    weights[3:, 3:] = APPROACH_WEIGHT * (np.eye(3) - along) + ROLL_WEIGHT * along
    return weights


def _length(vector: Floats) -> float:
    return float(np.sqrt(vector @ vector))


REACHED, NEAR, LAGGING, HELD = "reached", "near", "lagging", "held"
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
        """Return how many waypoints have one of ``statuses``."""
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
        # as close as the joints can get in time, which may be close enough
        bounded = self.inverse.solve(
            target,
            np.clip(found.positions, previous - reach, previous + reach),
            lower=previous - reach,
            upper=previous + reach,
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
