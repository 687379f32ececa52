# SPDX-License-Identifier: Apache-2.0
"""What one arm is about to do, the last command that was sent for it, and whether it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xvla_ros.control.limiter import Limiter, brake_window, command_window
from xvla_ros.control.motion import CommandWindow, MotionState, window_times
from xvla_ros.control.state import NOT_FOLLOWING
from xvla_ros.control.timeline import Timeline, slowing
from xvla_ros.observation.faults import Fault
from xvla_ros.observation.measured import MeasuredJoints
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Safety, Timing
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
        left_at: float64 [J] where a plan led when it was given up, None where none has been.
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
        self.left_at: Floats | None = None
        self._is_given_up = False

    def clear(self, now: int) -> None:
        """Forget plan and last command: the next motion starts from where the arm is measured to be."""
        self.give_up(now)
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
        taken = self._timeline.splice(times, positions, not_before)
        self._is_given_up = self._is_given_up and not taken
        return taken

    def leads_to(self, time: int) -> Floats | None:
        """Return where [J] chunks lead at ``time``: once given up, as far as was commanded; None before any command."""
        if self._is_given_up or self.window is None:
            return self.left_at
        planned = self.positions(np.array([time], np.int64))
        return None if planned is None else planned[0]

    def give_up(self, time: int) -> None:
        """Take note that chunks are carried out up to ``time``, and no further."""
        self.left_at = self.leads_to(time)
        self._is_given_up = True

    def stop(self, now: int) -> None:
        """Replace the plan by the rest of the last command, run ever slower until it stands."""
        if self.window is None:
            self._timeline.clear()
            return
        times, positions = way_to_rest(self.window, now, self._limits, self._timing)
        self.give_up(now + int(times[-1] - now) // 2)  # a clock that runs down goes half as far
        self._timeline.clear()
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
        if self.window is None:
            self._workspace.begin(start.position)
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
        self._workspace.go_on(window.start.position)
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


# s by which an arm in motion may be behind its commands: without a hold, and without the commands waiting for it
LAG, LAG_AT_ONCE = 0.3, 0.15
STILL_FOR = 0.5  # s for which an arm must have stood where a motion begins
OUTSIDE = 0.1  # share of its range by which a joint may be outside its limits where a motion begins
# s since the last joint state: for so long motion since then is allowed for, and taken to go on at the same velocity
UNSEEN_AT_MOST, GOES_ON = 1.0, 0.1
GRIPPERS_AFTER = 0.05  # s
CAUGHT_UP = 0.2  # s in which every command must have been within reach before the arm counts as following again


class Following:
    """Holds commands against where the joints are measured to be.

    A command is within reach of a joint that gets there within ``lead`` at its ``max_velocity``, or is no further away
    than ``safety.following_error.distance``, which allows for an arm that sags. A joint that moves may be
    ``LAG_AT_ONCE`` behind in the direction of its motion. Grippers may be anywhere, since what they hold stops them,
    unless the arm itself does not follow.

    Args:
        limits: of the joints.
        safety: how far away is too far, and for how long.
        lead: s until the first point of a window.
        grippers: columns of the grippers.
    """

    def __init__(self, limits: JointLimits, safety: Safety, lead: float, grippers: Sequence[int]) -> None:
        self._limits, self._first_step, self._allowed = limits, safety.first_step, safety.following_error
        self._grippers = list(grippers)
        self._at_rest = np.maximum(limits.max_velocity * lead, self._allowed.distance * (limits.upper - limits.lower))
        self._is_off = self._allowed.distance >= 1.0
        self._behind_since: int | None = None
        self._behind_until = 0
        self._beyond = np.zeros_like(self._at_rest)  # [J] the most out of reach since then

    def forget(self) -> None:
        """Forget the past: the next command starts from where the arm is."""
        self._behind_since = None

    @property
    def is_followed(self) -> bool:
        """Whether the newest command could go on from the one before it, as the arm had come along."""
        return self._behind_since is None

    def outside(self, positions: Floats) -> str:
        """Say which of the joints [J] is too far outside its limits for a motion to begin there; empty for none."""
        limits = self._limits
        beyond = np.maximum(limits.lower - positions, positions - limits.upper) / (limits.upper - limits.lower)
        worst = int(np.argmax(beyond))
        if self._is_off or beyond[worst] <= OUTSIDE:
            return ""
        return (
            f"{limits.joints[worst]} to be within its limits, {limits.lower[worst]:.3g} … {limits.upper[worst]:.3g}; "
            f"it is measured at {positions[worst]:.3g} rad or m"
        )

    def awaits(self, measured: MeasuredJoints) -> str:
        """Say what a motion from where the arm is measured must wait for; empty where it may begin."""
        if self._is_off:
            return ""
        if outside := self.outside(measured.positions):
            return outside
        still_for = measured.still_for.copy()
        still_for[self._grippers] = np.inf  # they may begin anywhere, and some tremble about what they hold
        moving = int(np.argmin(still_for))
        if still_for[moving] >= STILL_FOR:
            return ""
        return f"the arm to stand still: {self._limits.joints[moving]} moves"

    def excess(self, first: Floats, measured: MeasuredJoints, now: int, lag: float = LAG_AT_ONCE) -> Floats:
        """Return [J] by how much the first point of a window is out of reach of the arm, zero where it is within.

        Args:
            first: [J] rad or m, due ``lead`` after ``now``.
            measured: where the arm was last believed to be.
            now: ROS time in ns.
            lag: s by which an arm in motion may be behind.
        """
        if self._is_off:
            return np.zeros_like(first)
        limits = self._limits
        unseen = float(np.clip((now - measured.stamp) / NS, 0.0, UNSEEN_AT_MOST))
        velocities = np.clip(measured.velocities, -limits.max_velocity, limits.max_velocity)
        here = measured.positions + velocities * min(unseen, GOES_ON)
        around = self._at_rest + np.minimum(limits.max_acceleration * unseen / 2, limits.max_velocity) * unseen
        ahead = lag * velocities
        found = first - np.clip(first, here - around + np.minimum(ahead, 0.0), here + around + np.maximum(ahead, 0.0))
        if self._grippers and not self._has_been_behind(now):
            found[self._grippers] = 0.0
        return found

    def note(self, first: Floats, measured: MeasuredJoints, now: int) -> None:
        """Note whether the arm has followed by ROS time ``now`` in ns, so that it can reach the ``first`` point [J].

        Grippers do not count: one that holds something would keep an arm behind that has long caught up.
        """
        beyond = self.excess(first, measured, now, LAG)
        beyond[self._grippers] = 0.0
        behind = beyond.any()
        if behind:
            self._behind_until = now
        if self._behind_since is None:
            self._behind_since = now if behind else None
            self._beyond = np.zeros_like(beyond)
        elif not 0 <= now - self._behind_until <= CAUGHT_UP * NS:
            self._behind_since = None
        self._beyond = np.maximum(self._beyond, np.abs(beyond))

    def fault(self, now: int) -> Fault | None:
        """Return the fault that stops the arm where it has been too far from its plan for too long; else None."""
        if self._behind_since is None or now - self._behind_since < self._allowed.time * NS:
            return None
        worst = int(np.argmax(self._beyond))
        away = self._at_rest[worst] + self._beyond[worst]
        return Fault(
            NOT_FOLLOWING,
            (
                f"{self._limits.joints[worst]} has been up to {away:.3f} rad or m from its plan for "
                f"{(now - self._behind_since) / NS:.1f} s; expected at most {self._at_rest[worst]:.3f} for "
                f"{self._allowed.time:g} s (safety.following_error). Is the arm without power or blocked, or does "
                "it sag?"
            ),
        )

    def _has_been_behind(self, now: int) -> bool:
        return self._behind_since is not None and now - self._behind_since > GRIPPERS_AFTER * NS

    def too_far(self, first: Floats, measured: Floats) -> str:
        """Say which joint the ``first`` waypoint of a motion from rest leads implausibly far; empty where none."""
        away = np.abs(first - measured) / (self._limits.upper - self._limits.lower)
        away[self._grippers] = 0.0
        worst = int(np.argmax(away))
        if away[worst] <= self._first_step:
            return ""
        return (
            f"the first waypoint of {self._limits.joints[worst]!r} is {first[worst]:.3f}, and it is measured at "
            f"{measured[worst]:.3f}: {away[worst]:.0%} of its range; expected at most "
            f"{self._first_step:.0%} (safety.first_step); check units, offsets and the checkpoint"
        )
