"""Whether an arm is where a plan takes it to be, in shares of its joints' ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xvla_ros.control.motion import Floats
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.motion_schema import Safety


class Whereabouts:
    """Compares plans with where the joints are measured to be; grippers may be anywhere.

    Args:
        limits: of the joints.
        safety: how far away is too far.
        grippers: columns of the grippers.
    """

    def __init__(self, limits: JointLimits, safety: Safety, grippers: Sequence[int]) -> None:
        self._limits, self._safety, self._grippers = limits, safety, list(grippers)

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
