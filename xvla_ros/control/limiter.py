# SPDX-License-Identifier: Apache-2.0
"""Motion inside limits of position, velocity, acceleration and jerk, whatever is planned: Ruckig, state to state.

``command_window`` and ``brake_window`` are the one way from a plan to a command.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ruckig import InputParameter, Ruckig, Synchronization

from xvla_ros.control.motion import (
    TOLERANCE,
    Bounds,
    Brake,
    Brakes,
    CommandWindow,
    Flags,
    MotionState,
    cubic_inside,
    slopes_of,
    solve,
)
from xvla_ros.robots.joints import JointLimits
from xvla_ros.types import Floats

try:
    from xvla_ros.control import _chain
except ImportError:  # no compiler where the package was installed: the same is done in Python, six times slower
    _chain = None  # type: ignore[assignment]

# A point further from the plan than this share of a joint's range, and than twice the margin, counts as limited.
LIMITED = 1e-4
ROUNDS = 3  # of looking for the point where a late joint meets the plan; one round where the next window is sooner
STANDS = 1e-6  # s: a joint with so little left to brake is at rest
# Points that a path may get beyond its last time to come to rest; a motion that needs more is stopped without Ruckig.
MOST_EXTRA_POINTS = 300
OVERTAKEN = 0.95  # a point is taken to move on at its velocity, but at most at this share of the highest velocity


@dataclass(frozen=True)
class LimitedPath:
    """Motion states at K times.

    Attributes:
        times: float64 [K] s after the start, strictly increasing.
        positions, velocities, accelerations: [K, J]; the last row of velocities and accelerations is zero.
        limited: number of points that a limit moved away from the plan by more than 1e-4 of a joint's range and than
            twice the margin of position; points of the braking at the end do not count.
    """

    times: Floats
    positions: Floats
    velocities: Floats
    accelerations: Floats
    limited: int


class Limiter:
    """Turns plans into motion that can always be stopped in time, by the limits of one robot's joints.

    A path is a chain of states. From each, Ruckig finds the fastest motion to the plan's next point; the state that
    it reaches by that point's time is taken, joint by joint, only if the joint could brake from there inside the
    position limits and before the path ends. Else the joint brakes. So from a state with such a brake, for example
    rest, every path is inside every limit and ends at rest, whatever the plan.

    Each joint is limited for itself: one that is held up does not delay the others. Not for use by two threads.

    ``_chain`` (``chain.cpp``) is ``_chained`` and what it calls, compiled: the same steps in the same order with
    the same Ruckig, so the same numbers. What needs points added, or finds no brake, is left to Python.
    """

    def __init__(self, limits: JointLimits) -> None:
        self._limits = limits
        self._brakes = Brakes(limits)
        self._pursuit = Pursuit(self._brakes.acceleration, self._brakes.jerk)

    def follow(self, start: MotionState, times: Floats, positions: Floats, velocities: Floats) -> LimitedPath:
        """Follow a plan as closely as the limits allow and be at rest at the last time.

        A plan is met at every point, without lag, until the path must brake for its end, if it keeps to 95 % of the
        acceleration limit (90 %, and 99 % of the velocity limit, where there is a limit of jerk, of which it keeps to
        90 %) and stays away from the position limits by a margin: 0.8 mrad at 10 rad/s² and points 50 ms apart. One
        that asks for more is cut short rather than followed late.
        A joint that starts outside its position limits returns and never goes further out than braking takes it.
        Where ``start`` itself cannot come to rest by the last time, points are added until it does.

        Args:
            start: the state at time 0.
            times: [K] s after it, positive, strictly increasing.
            positions, velocities: [K, J] of the plan; velocities those that the plan has at its points.

        Raises:
            ValueError: a number is not finite.
        """
        _check_finite(start, times, positions, velocities)
        bounds = self._brakes.bounds(times)
        targets = self._targets(times, positions, velocities, bounds)
        chain = (start, times, targets, positions, bounds)
        return self._compiled(*chain) or self._chained(*chain)

    def brake(self, start: MotionState, times: Floats) -> LimitedPath:
        """Come to rest as soon as the limits allow; add points where the last time is too early for that.

        Args:
            start: the state at time 0.
            times: [K] s after it, positive, strictly increasing.

        Raises:
            ValueError: a number is not finite.
        """
        _check_finite(start, times)
        brake = self._brakes.safe(start.rows(), float(times[-1]), self._brakes.bounds(times))
        if brake is None or _takes_too_long(brake, times):
            return self._plain_stop(start, times)
        return _ended(_sampled(brake, times), times, brake, 0.0, 0)

    def _targets(self, times: Floats, positions: Floats, velocities: Floats, bounds: Bounds) -> Floats:
        """Return the plan as states [K, 3, J] from which the joints could be stopped inside the limits."""
        inside = np.clip(positions, bounds.lower, bounds.upper)
        up, down = np.minimum(
            self._speed_to_stop_in(np.array([bounds.upper - inside, inside - bounds.lower])), bounds.velocity
        )
        speeds = np.clip(velocities, -down, up)
        targets = np.zeros((len(times), 3, inside.shape[1]))
        targets[:, 0], targets[:, 1] = inside, speeds
        brakes = self._brakes
        if brakes.jerky.any() and len(times) > 2:
            jerk, spare = np.where(brakes.jerky, brakes.jerk, 0.0), bounds.velocity - np.abs(speeds)
            most = np.minimum(brakes.acceleration, np.sqrt(2 * jerk * spare))
            kept = (speeds == velocities) & (inside == positions)
            targets[:, 2] = np.where(kept, np.clip(slopes_of(velocities, times), -most, most), 0.0)
        return targets

    def _speed_to_stop_in(self, distance: Floats) -> Floats:
        """Return the constant speed, or a little less, from which a joint stops within ``distance``."""
        acceleration = self._brakes.acceleration
        ramp = acceleration / (2 * self._brakes.jerk)
        speed: Floats = acceleration * (np.sqrt(ramp**2 + 2 * distance / acceleration) - ramp)
        return speed

    def _compiled(
        self, start: MotionState, times: Floats, targets: Floats, plan: Floats, bounds: Bounds
    ) -> LimitedPath | None:
        """Return what ``_chained`` returns; None where there is nothing compiled, or it leaves this one to Python."""
        if _chain is None:
            return None
        limits, brakes = self._limits, self._brakes
        own = (limits.max_velocity, limits.max_acceleration, limits.max_jerk, brakes.acceleration, brakes.jerk)
        joints = np.stack([*own, bounds.lower, bounds.upper, bounds.velocity, bounds.margin], axis=1)
        states, ending = np.empty_like(targets), np.empty(plan.shape, bool)
        constants = (TOLERANCE, OVERTAKEN, STANDS, MOST_EXTRA_POINTS, ROUNDS)
        if not _chain.follow(joints, start.rows(), times, targets, states, ending, *constants):
            return None
        if not self._keeps_limits(start.rows(), states):  # compiled against another Ruckig, say
            return None
        moved = self._count_moved(states[:, 0], plan, ending, bounds)
        return LimitedPath(times, states[:, 0], states[:, 1], states[:, 2], moved)

    def _keeps_limits(self, start: Floats, states: Floats) -> bool:
        """Say whether states [K, 3, J] are finite and inside the limits, or no further outside than the start."""
        limits, slack = self._limits, 1e-6
        most = np.maximum(np.abs(start[1:]), [limits.max_velocity, limits.max_acceleration]) + slack
        low, high = np.minimum(limits.lower, start[0]) - slack, np.maximum(limits.upper, start[0]) + slack
        inside = (states[:, 0] >= low) & (states[:, 0] <= high)
        return bool(inside.all() and (np.abs(states[:, 1:]) <= most).all())

    def _chained(self, start: MotionState, times: Floats, targets: Floats, plan: Floats, bounds: Bounds) -> LimitedPath:
        state, before, end = start.rows(), 0.0, float(times[-1])
        brake = self._brakes.safe(state, end, bounds)
        if brake is None or _takes_too_long(brake, times):
            return self._plain_stop(start, times)
        states, ending = np.empty((len(times), *state.shape)), np.zeros((len(times), state.shape[1]), bool)
        for k, at in enumerate(times.tolist()):
            left = end - at
            aim = self._pursuit.next_state(
                state, targets[k:], times[k:] - before, bounds.velocity, ROUNDS if k == 0 else 1
            )
            if aim is not None:
                aim[0] = self._evened(state, aim, at - before)
            state, ending[k], braking = self._take(aim, state, brake, at - before, left, bounds)
            following = braking or self._brakes.safe(state, left, bounds)
            if following is None:
                states[k:] = _sampled(brake, times[k:] - before)
                break
            states[k], brake, before = state, following, at
        return _ended(states, times, brake, before, self._count_moved(states[:, 0], plan, ending, bounds))

    def _take(
        self, aim: Floats | None, state: Floats, brake: Brake, step: float, left: float, bounds: Bounds
    ) -> tuple[Floats, Flags, Brake | None]:
        """Return the next state: each joint's aim if it can be stopped from there, else the state after braking.

        Returns:
            The state [3, J]; [J] which joints brake to be at rest in time; and the brake from that state, None where a
            joint had to brake.
        """
        braked = brake.at(step)
        nothing = np.zeros(braked.shape[1], bool)
        braking = None if aim is None else self._brakes.gentle(aim)
        if aim is None or braking is None:
            return braked, nothing, None
        low = np.minimum(bounds.lower, brake.low) - TOLERANCE
        high = np.maximum(bounds.upper, brake.high) + TOLERANCE
        inside = (braking.low >= low) & (braking.high <= high) & cubic_inside(state, aim, step, low, high)
        in_time = braking.duration <= np.maximum(left, brake.duration - step) + TOLERANCE
        taken = inside & in_time
        if taken.all():
            return aim, nothing, braking
        return np.where(taken, aim, braked), ~in_time, None

    def _evened(self, state: Floats, aim: Floats, step: float) -> Floats:
        """Return the positions [J] of the state aimed at, moved so that the cubic to it keeps the limits throughout.

        Its acceleration changes evenly from ``mean + bend`` to ``mean - bend``. The cubic of a motion that speeds up
        and slows down within one step bends too much: a joint could not be braked from the middle of it.
        """
        (position, velocity, _), after = state, aim[1]
        mean = (after - velocity) / step
        straight = position + (velocity + after) * (step / 2)
        bend = (aim[0] - straight) * (6 / step**2)
        limits, straining, peak = self._limits, np.abs(mean) + np.abs(bend), np.abs(bend) * (step / 4)
        if (straining <= limits.max_acceleration).all() and (
            np.maximum(np.abs(velocity), np.abs(after)) + peak <= limits.max_velocity
        ).all():
            same: Floats = aim[0]
            return same
        # a bend below |mean| is no faster anywhere than at its ends, one beyond has a peak in the direction of bend
        way = np.sign(bend)
        room = (limits.max_velocity - way * velocity) * (2 / step) - way * mean
        fast = np.maximum(room + np.sqrt(np.maximum(room**2 - mean**2, 0.0)), np.abs(mean))
        most = np.maximum(np.minimum(limits.max_acceleration - np.abs(mean), fast), 0.0)
        moved: Floats = np.where(np.abs(bend) > most, straight + way * most * (step**2 / 6), aim[0])
        return moved

    def _count_moved(self, path: Floats, plan: Floats, ending: Flags, bounds: Bounds) -> int:
        moved = np.abs(path - plan) > np.maximum(LIMITED * (self._limits.upper - self._limits.lower), 2 * bounds.margin)
        return int((moved & ~np.logical_or.accumulate(ending, axis=0)).any(axis=1).sum())

    def _plain_stop(self, start: MotionState, times: Floats) -> LimitedPath:
        """Let the velocity fall evenly to zero over the path: for a start so fast that Ruckig finds no brake."""
        end, at, limits = float(times[-1]), times[:, None], self._limits
        positions = start.position + start.velocity * (at - at**2 / (2 * end))
        return LimitedPath(
            times,
            np.clip(positions, np.minimum(limits.lower, start.position), np.maximum(limits.upper, start.position)),
            start.velocity * (1 - at / end),
            np.concatenate(
                [
                    np.broadcast_to(-start.velocity / end, (len(times) - 1, len(limits.joints))),
                    np.zeros((1, len(limits.joints))),
                ]
            ),
            len(times),
        )


class Pursuit:
    """Sends J joints after a plan, each for itself, within limits [J] of velocity, acceleration and jerk.

    A point of a plan moves; it is met where it will be, not where it was: seen from a frame that moves along with it.
    """

    def __init__(self, acceleration: Floats, jerk: Floats) -> None:
        joints = len(acceleration)
        self._acceleration, self._jerk = acceleration, jerk
        self._all, self._joints = [True] * joints, np.arange(joints)
        self._otg, self._goal = Ruckig(joints), InputParameter(joints)
        self._goal.max_acceleration, self._goal.max_jerk = acceleration, jerk
        self._otg_one, self._goal_one = Ruckig(1), InputParameter(1)

    def next_state(
        self, state: Floats, plan: Floats, after: Floats, max_velocity: Floats, rounds: int
    ) -> Floats | None:
        """Return the state [3, J] after ``after[0]`` s on the way to meet the plan; None where Ruckig finds no motion.

        A joint that could meet the plan's first point early arrives just in time. A joint that cannot meet it in time
        heads for the first point that it can meet, found in a few rounds. So it turns early where the plan turns too
        hard for it, and lags no more than it must.

        Args:
            state: [3, J] position, velocity and acceleration.
            plan: [N, 3, J] the states to be met.
            after: [N] s until they are due.
            max_velocity: [J].
            rounds: how often to look for a better point.
        """
        step = float(after[0])
        met = self._meet(state, plan[0], step, step, max_velocity)
        if met is None:
            return None
        reached, duration = met
        early, late = duration < step, duration > step + TOLERANCE
        if early.any():
            self._delay(reached, state, plan[0], step, early, max_velocity)
        for _ in range(rounds if late.any() else 0):
            ahead = np.minimum(np.searchsorted(after, duration), len(after) - 1)
            met = self._meet(state, plan[ahead, :, self._joints].T, after[ahead], step, max_velocity)
            if met is None:
                break
            reached, duration = np.where(late & (met[1] >= step), met[0], reached), met[1]
        return reached

    def _meet(
        self, state: Floats, point: Floats, after: float | Floats, step: float, max_velocity: Floats
    ) -> tuple[Floats, Floats] | None:
        """Return state and duration [J]: ``step`` s into the fastest motion to a point [3, J] due ``after`` s."""
        goal, fastest = self._goal, max_velocity * OVERTAKEN
        frame = np.empty_like(point[:2])
        frame[1] = np.clip(point[1], -fastest, fastest)
        frame[0] = point[0] - frame[1] * after
        goal.max_velocity, goal.min_velocity = max_velocity - frame[1], -max_velocity - frame[1]
        goal.current_position, goal.current_velocity = (state[:2] - frame).tolist()
        goal.current_acceleration = state[2].tolist()
        goal.target_velocity, goal.target_acceleration = (point[1] - frame[1]).tolist(), point[2].tolist()
        goal.enabled, goal.minimum_duration, goal.synchronization = self._all, None, Synchronization.No
        motion = solve(self._otg, goal)
        if motion is None:
            return None
        reached = np.array(motion.at_time(step))
        reached[:2] += frame
        reached[0] += frame[1] * step
        return reached, np.array(motion.independent_min_durations)

    def _delay(
        self, reached: Floats, state: Floats, point: Floats, step: float, early: Flags, max_velocity: Floats
    ) -> None:
        """Set ``reached`` for the ``early`` joints so that they get to the last point after ``step`` s, not before."""
        goal = self._goal
        goal.enabled, goal.minimum_duration, goal.synchronization = early.tolist(), step, Synchronization.Time
        motion = solve(self._otg, goal)
        if motion is not None and motion.duration <= step + TOLERANCE:
            reached[:, early] = point[:, early]
            return
        for joint in np.flatnonzero(early):  # one of them can be there sooner or far later, and holds up the rest
            late = self._delay_one(state[:, joint], point[:, joint], joint, step, max_velocity)
            reached[:, joint] = reached[:, joint] if late is None else late

    def _delay_one(self, state: Floats, point: Floats, joint: int, step: float, max_velocity: Floats) -> Floats | None:
        only, goal = slice(joint, joint + 1), self._goal_one
        goal.current_position, goal.current_velocity, goal.current_acceleration = state[:, None].tolist()
        goal.target_position, goal.target_velocity, goal.target_acceleration = point[:, None].tolist()
        goal.max_velocity, goal.max_acceleration = max_velocity[only], self._acceleration[only]
        goal.max_jerk, goal.minimum_duration = self._jerk[only], step
        motion = solve(self._otg_one, goal)
        return None if motion is None else np.array(motion.at_time(step))[:, 0]


def _sampled(brake: Brake, times: Floats) -> Floats:
    return np.stack([brake.at(time) for time in times.tolist()])


def _ended(states: Floats, times: Floats, brake: Brake, since: float, limited: int) -> LimitedPath:
    """Return the path of ``states``, with points added where it is not at rest at its last time.

    Args:
        states: [K, 3, J].
        brake: the brake from the state at time ``since`` s; the later states lie on it.
    """
    spacing = _spacing(times)
    extra = int(np.ceil((since + brake.duration.max() - times[-1] - STANDS) / spacing))
    if extra > 0:
        times = np.concatenate([times, times[-1] + spacing * np.arange(1, extra + 1)])
        states = np.concatenate([states, _sampled(brake, times[-extra:] - since)])
    states[-1, 0], states[-1, 1:] = brake.rest, 0.0
    return LimitedPath(times, states[:, 0], states[:, 1], states[:, 2], limited)


def _takes_too_long(brake: Brake, times: Floats) -> bool:
    return bool(brake.duration.max() > times[-1] + MOST_EXTRA_POINTS * _spacing(times))


def _spacing(times: Floats) -> float:
    return float(times[-1] - times[-2]) if len(times) > 1 else float(times[-1])


def _check_finite(start: MotionState, *parts: Floats) -> None:
    if not (start.is_finite() and all(np.isfinite(part).all() for part in parts)):
        raise ValueError("the planned or measured motion contains NaN or Inf; no command is sent")


def command_window(
    stamp: int, start: MotionState, times: Floats, positions: Floats, velocities: Floats, limiter: Limiter
) -> CommandWindow:
    """Limit a plan.

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
    """Return the window that brings the arm to rest as soon as its limits allow; arguments as in ``command_window``."""
    return _window(stamp, start, limiter.brake(start, times))


def _window(stamp: int, start: MotionState, path: LimitedPath) -> CommandWindow:
    return CommandWindow(stamp, start, path.times, path.positions, path.velocities, path.accelerations, path.limited)
