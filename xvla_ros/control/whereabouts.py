"""Whether an arm is where a plan takes it to be, in shares of its joints' ranges."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from xvla_ros.control.motion import Floats
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.motion_schema import Safety

LAG = 300_000_000  # ns by which an arm may be behind its commands, controllers and joint states included


class Whereabouts:
    """Compares plans with where the joints are measured to be; grippers may be anywhere.

    Args:
        limits: of the joints.
        safety: how far away is too far.
        followed: and how far from what it is sent an arm may be in motion.
        grippers: columns of the grippers.
    """

    def __init__(self, limits: JointLimits, safety: Safety, followed: float, grippers: Sequence[int]) -> None:
        self._limits, self._safety, self._followed, self._grippers = limits, safety, followed, list(grippers)
        self._commands: deque[tuple[int, Floats]] = deque()

    def command(self, now: int, commanded: Floats) -> None:
        """Note where the arm is commanded to be, [J] rad or m, at ROS time ``now`` in ns."""
        while self._commands and not 0 <= now - self._commands[0][0] <= LAG:
            self._commands.popleft()
        self._commands.append((now, commanded))

    def forget(self) -> None:
        """Begin anew: what was commanded no longer counts."""
        self._commands.clear()

    def is_followed(self, measured: Floats) -> bool:
        """Whether an arm in motion is, at most ``LAG`` late, where it is commanded to be; ``measured`` [J] rad or m.

        A lag is passed by; an arm that something holds up is nowhere near any of its last commands.
        """
        if not self._commands or self._commands[-1][0] - self._commands[0][0] < LAG // 2:
            return True
        return any((self._away(each, measured) <= self._followed).all() for _, each in self._commands)

    def were_left(self, commanded: Floats, measured: Floats) -> bool:
        """Whether an arm that stands is no longer where it was ``commanded`` to be; both [J] rad or m."""
        return bool((self._away(commanded, measured) > self._safety.deviation).any())

    def too_far(self, first: Floats, measured: Floats) -> str:
        """Say which joint the ``first`` waypoint of a motion from rest leads implausibly far away; empty where none."""
        away = self._away(first, measured)
        worst = int(np.argmax(away))
        if away[worst] <= self._safety.first_step:
            return ""
        return (
            f"the first waypoint of {self._limits.joints[worst]!r} is {first[worst]:.3f}, and it is measured at "
            f"{measured[worst]:.3f}: {away[worst]:.0%} of its range, expected at most "
            f"{self._safety.first_step:.0%} (safety.first_step); check units, offsets and the checkpoint"
        )

    def _away(self, wanted: Floats, measured: Floats) -> Floats:
        away = np.abs(wanted - measured) / (self._limits.upper - self._limits.lower)
        away[self._grippers] = 0.0
        return away
