"""Controllers that pass positions on as they come: forward_command_controller, and the articulation controller of
Isaac Sim. Positions in rad (m where a joint slides), times in integer nanoseconds of ROS time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from xvla_ros.simulation.controllers import REMEMBERED_REJECTIONS, Rejection
from xvla_ros.simulation.trajectory import Array, Setpoint, at_rest


class SetpointController:
    """Holds the last position that was asked of each joint of a group.

    ``command`` may be called from another thread than ``update``, which takes the positions up.
    """

    def __init__(self, name: str, joints: Sequence[str]) -> None:
        """A controller of ``joints``, the names that its messages use, in the order of its setpoints."""
        self.name = name
        self.joints = tuple(joints)
        self.rejections: deque[Rejection] = deque(maxlen=REMEMBERED_REJECTIONS)
        self.rejected = 0
        self.accepted = 0
        self._desired: Array | None = None
        self._pending: dict[str, float] = {}

    def command(self, names: Sequence[str], positions: Sequence[float], now: int) -> Rejection | None:
        """Takes positions for the joints ``names``, the others keeping theirs; without names, for all in order.

        A refusal is counted and returned; the positions that hold go on.
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
        """The setpoint at ``now``; before any command it is the position measured first."""
        if self._desired is None:
            self._desired = positions.copy()
        pending = self._pending
        if pending:
            self._desired = np.array([pending.get(j, self._desired[i]) for i, j in enumerate(self.joints)])
        return at_rest(self._desired)

    def hold(self, positions: Array) -> None:
        """Forgets what was asked and holds ``positions``."""
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
