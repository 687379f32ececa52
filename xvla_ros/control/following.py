# SPDX-License-Identifier: Apache-2.0
"""Whether an arm follows its commands, and how far the next one may be from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xvla_ros.control.state import NOT_FOLLOWING
from xvla_ros.observation.faults import Fault
from xvla_ros.observation.measured import MeasuredJoints
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile.schema import Safety
from xvla_ros.types import NS, Floats

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

    def forget(self) -> None:
        """Forget the past: the next command starts from where the arm is."""
        self._behind_since = None

    @property
    def is_followed(self) -> bool:
        """Whether the newest command could go on from the one before it, as the arm had come along."""
        return self._behind_since is None

    def awaits(self, measured: MeasuredJoints) -> str:
        """Say what a motion from where the arm is measured must wait for; empty where it may begin."""
        if self._is_off:
            return ""
        beyond = np.maximum(self._limits.lower - measured.positions, measured.positions - self._limits.upper)
        beyond /= self._limits.upper - self._limits.lower
        worst = int(np.argmax(beyond))
        if beyond[worst] > OUTSIDE:
            return (
                f"{self._limits.joints[worst]} to be within its limits, {self._limits.lower[worst]:.3g} … "
                f"{self._limits.upper[worst]:.3g}; it is measured at {measured.positions[worst]:.3g} rad or m"
            )
        moving = int(np.argmin(measured.still_for))
        if measured.still_for[moving] >= STILL_FOR:
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
        """Note whether the arm has followed by ROS time ``now`` in ns, so that it can reach the ``first`` point [J]."""
        behind = self.excess(first, measured, now, LAG).any()
        if behind:
            self._behind_until = now
        if self._behind_since is None:
            self._behind_since = now if behind else None
        elif not 0 <= now - self._behind_until <= CAUGHT_UP * NS:
            self._behind_since = None

    def fault(self, first: Floats, measured: MeasuredJoints, now: int) -> Fault | None:
        """Return the fault that stops the arm where it has been too far from its commands for too long; else None.

        Args:
            first: [J] the last command's positions for ``now``, rad or m.
        """
        if self._behind_since is None or now - self._behind_since < self._allowed.time * NS:
            return None
        away = np.abs(first - measured.positions)
        away[self._grippers] = 0.0
        worst = int(np.argmax(away - self._at_rest))
        return Fault(
            NOT_FOLLOWING,
            (
                f"{self._limits.joints[worst]} has been {away[worst]:.3f} rad or m from its commands for "
                f"{(now - self._behind_since) / NS:.1f} s; expected at most {self._at_rest[worst]:.3f} for "
                f"{self._allowed.time:g} s (safety.following_error). Is the arm powered, blocked, or does it sag?"
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
            f"{measured[worst]:.3f}: {away[worst]:.0%} of its range, expected at most "
            f"{self._first_step:.0%} (safety.first_step); check units, offsets and the checkpoint"
        )
