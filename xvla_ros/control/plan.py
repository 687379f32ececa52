# SPDX-License-Identifier: Apache-2.0
"""What one arm is about to do, and the last command that was sent for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xvla_ros.control.limiter import Limiter, brake_window, command_window
from xvla_ros.control.motion import CommandWindow, MotionState, window_times
from xvla_ros.control.timeline import Timeline, slowing
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Timing
from xvla_ros.robots.tools import Workspace
from xvla_ros.types import NS, Floats, Stamps

PULLS = 4  # rounds in which a command is brought within reach of the arm; the last resort is to rest within reach
# A clock that runs down by ``slowing`` brakes at most 3/2 and jerks at most 6 times the mean of its time.
SLOWING_PEAK, SLOWING_JERK, SPARE = 1.5, 6.0, 1.1
STANDING = 1e-3  # rad/s or m/s, slower is at rest


class Plan:
    """A timeline and the commands made from it, each of which has gone through the ``Limiter`` and the ``Workspace``.

    Times are ns of ROS time.

    Args:
        profile: the robot.
        limits: of its joints.
        workspace: the boxes its tools stay in.

    Attributes:
        window: the last command that was sent, None before the first.
    """

    def __init__(self, profile: Profile, limits: JointLimits, workspace: Workspace) -> None:
        self._limits, self._timing, self._workspace = limits, profile.timing, workspace
        self._limiter = Limiter(limits)
        self._window_times = window_times(self._timing.lead, self._timing.lookahead, self._timing.command_rate)
        self._timeline = Timeline(
            len(profile.joints.policy_order), lambda speeds: stopping_time(speeds, limits, profile.timing)
        )
        self.window: CommandWindow | None = None
        self._before: CommandWindow | None = None

    def clear(self) -> None:
        """Forget plan and last command: the next motion starts from where the arm is measured to be."""
        self._timeline.clear()
        self.window = self._before = None

    @property
    def end(self) -> int | None:
        """When the arm stands, None where nothing is planned."""
        return self._timeline.end

    def lasts(self, now: int, spare: int = 0) -> bool:
        """Say whether the plan goes on at ``now``, or ended at most ``spare`` ns before."""
        end = self._timeline.end
        return end is not None and now <= end + spare

    def positions(self, times: Stamps) -> Floats | None:
        """Return the positions [K, J] planned for ``times`` [K], None where nothing is planned."""
        return None if self._timeline.is_empty else self._timeline.sample(times)[0]

    def splice(self, times: Stamps, positions: Floats, not_before: int) -> int:
        """Replace the plan from ``not_before`` on, as ``Timeline.splice``; return how many waypoints were taken."""
        return self._timeline.splice(times, positions, not_before)

    def stop(self, now: int) -> None:
        """Replace the plan by the rest of the last command, run ever slower until it stands."""
        self._timeline.clear()
        if self.window is not None:
            times, positions = way_to_rest(self.window, now, self._limits, self._timing)
            self._timeline.splice(times, positions, now - 1)

    def follow_jump(self, jump: int) -> None:
        """Move the last command by the clock's ``jump`` in ns, so that it goes on from where the arm is."""
        if self.window is not None:
            self.window = replace(self.window, stamp=self.window.stamp + jump)

    def is_moving(self, now: int) -> bool:
        """Say whether a controller that follows the last command still moves at ``now``."""
        return self.window is not None and bool(np.abs(self.window.state_at(now).velocity).max() >= STANDING)

    def command_at(
        self, now: int, start: MotionState, excess: Callable[[Floats], Floats]
    ) -> tuple[CommandWindow, str, Floats]:
        """Work out a command from ``start`` at ``now`` whose first point is within reach of the arm.

        Where the arm has not followed, the command starts nearer to it.

        Args:
            now: ROS time in ns.
            start: where the controller should be, and how it should move.
            excess: first point [J] → by how much it is out of reach [J], zero where it is within.

        Returns:
            The command; which tool would have left its box, empty where none (if one would, the command is a brake);
            and the first point [J] that the command would have, had the arm followed.
        """
        window, outside = self._limited(now, start)
        wanted = window.positions[0]
        away = excess(wanted)
        for _ in range(PULLS):
            if not away.any():
                return window, outside, wanted
            start = replace(start, position=start.position - away)
            window, outside = self._limited(now, start)
            away = excess(window.positions[0])
        if away.any():
            at_rest = MotionState.at_rest(start.position - excess(start.position))
            window = brake_window(now, at_rest, self._window_times, self._limiter)
        return window, outside, wanted

    def _limited(self, now: int, start: MotionState) -> tuple[CommandWindow, str]:
        at = now + np.round(self._window_times * NS).astype(np.int64)
        window = command_window(now, start, self._window_times, *self._timeline.sample(at), self._limiter)
        outside = self._workspace.left_by(window.positions, start.position)
        if outside:
            window = brake_window(now, start, self._window_times, self._limiter)
        return window, outside

    def send(self, window: CommandWindow) -> None:
        """Go on from ``window`` from now on."""
        self._timeline.forget_before(window.stamp)
        self._before, self.window = self.window, window

    def take_back(self, window: CommandWindow, joints: Sequence[int] | None = None) -> bool:
        """Go on from the command before ``window``, which was not sent, or not to the columns ``joints``.

        Returns:
            Whether ``window`` was the last command.
        """
        if self.window is not window:
            return False
        before, self._before = self._before, None
        self.window = before if joints is None else window.with_others(joints, before)
        return True


def stopping_time(speeds: Floats, limits: JointLimits, timing: Timing) -> float:
    """Return the seconds in which every joint can lose its speed [J], between lead and lookahead."""
    braking = SLOWING_PEAK * speeds / limits.max_acceleration
    jerking = np.sqrt(SLOWING_JERK * speeds / limits.max_jerk)
    needed = SPARE * float(np.maximum(braking, jerking).max())
    return float(np.clip(needed, timing.lead, timing.lookahead))


def way_to_rest(window: CommandWindow, now: int, limits: JointLimits, timing: Timing) -> tuple[Stamps, Floats]:
    """Return the rest of ``window``, run ever slower from ROS time ``now`` in ns until the arm stands.

    Returns:
        ROS times int64 [T] in ns, and positions [T, J].
    """
    duration = stopping_time(np.abs(window.velocities).max(axis=0), limits, timing)
    points = max(int(duration * timing.command_rate), 2) + 1
    share = np.linspace(0.0, 1.0, points, dtype=np.float64)
    along = slowing(share)[0] * duration
    positions = np.stack([window.position_at(now + round(s * NS)) for s in along])
    return now + np.round(share * duration * NS).astype(np.int64), positions
