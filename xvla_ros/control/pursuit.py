"""The fastest motion of joints to a plan that moves on: Ruckig, state to state."""

from __future__ import annotations

import numpy as np
from ruckig import InputParameter, Ruckig, Synchronization

from xvla_ros.control.brakes import TOLERANCE, solve
from xvla_ros.control.motion import Flags, Floats

OVERTAKEN = 0.95  # share of the highest velocity at which a point that is as fast or faster is taken to move on


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
        """The state [3, J] after ``after[0]`` s on the way to meet the plan; None where Ruckig finds no motion.

        A joint that could meet the plan's first point sooner is there at its time. One that cannot in time heads for
        the first point that it can meet, found in a few rounds: so it turns early where the plan turns too hard for
        it, and lags no more than it must.

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
        """The fastest motion to a point [3, J] due ``after`` s: its state after ``step`` s and its duration [J]."""
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
        """Put into ``reached`` how the ``early`` joints get to the point met last after ``step`` s and not before."""
        goal = self._goal
        goal.enabled, goal.minimum_duration, goal.synchronization = early.tolist(), step, Synchronization.Time
        motion = solve(self._otg, goal)
        if motion is not None and motion.duration <= step + TOLERANCE:
            reached[:, early] = point[:, early]
            return
        for joint in np.flatnonzero(early):  # one of them can be there sooner or far later, and holds up the rest
            late = self._delay_one(state[:, joint], point[:, joint], joint, step, max_velocity)
            reached[:, joint] = reached[:, joint] if late is None else late

    def _delay_one(
        self, state: Floats, point: Floats, joint: int, step: float, max_velocity: Floats
    ) -> Floats | None:
        only, goal = slice(joint, joint + 1), self._goal_one
        goal.current_position, goal.current_velocity, goal.current_acceleration = state[:, None].tolist()
        goal.target_position, goal.target_velocity, goal.target_acceleration = point[:, None].tolist()
        goal.max_velocity, goal.max_acceleration = max_velocity[only], self._acceleration[only]
        goal.max_jerk, goal.minimum_duration = self._jerk[only], step
        motion = solve(self._otg_one, goal)
        return None if motion is None else np.array(motion.at_time(step))[:, 0]
