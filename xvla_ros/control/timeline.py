"""Waypoints of one robot keyed by the ROS time at which each is due."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Stamps = NDArray[np.int64]

S_TO_NS = 1_000_000_000


class Timeline:
    """What the robot is to do from now on, as positions over absolute time.

    Positions are in ROS units (rad, m), one column per joint. Between waypoints the path is linear; before the first
    it is the first, after the last it is the last, so a timeline that runs out is a robot that stands.
    """

    def __init__(self, joints: int) -> None:
        self._joints = joints
        self.clear()

    def clear(self) -> None:
        """Forget everything planned."""
        self._times: Stamps = np.empty(0, np.int64)
        self._positions: Floats = np.empty((0, self._joints))

    @property
    def is_empty(self) -> bool:
        return self._times.size == 0

    @property
    def end(self) -> int | None:
        """ROS time in ns of the last waypoint, None when nothing is planned."""
        return None if self.is_empty else int(self._times[-1])

    def splice(self, times: Stamps, positions: Floats, not_before: int) -> int:
        """Replace the plan from the first waypoint due after ``not_before`` on; return how many waypoints were taken.

        What is planned up to that waypoint stays, so the path between is the straight line from the old plan to the
        new one. A chunk that comes late loses the waypoints already due; one wholly late changes nothing, returns 0.

        Args:
            times: int64 [T] ns, strictly increasing.
            positions: [T, J] rad or m.
            not_before: ROS time in ns, usually now + lead.
        """
        due = times > not_before
        taken = int(due.sum())
        if not taken:
            return 0
        new_times, new_positions = times[due], positions[due]
        if self.is_empty:
            self._times, self._positions = new_times.copy(), new_positions.copy()
            return taken
        if not_before < new_times[0]:
            anchor = self.sample(np.array([not_before], np.int64))
            new_times = np.concatenate([[not_before], new_times]).astype(np.int64)
            new_positions = np.concatenate([anchor, new_positions])
        keep = self._times < not_before
        self._times = np.concatenate([self._times[keep], new_times])
        self._positions = np.concatenate([self._positions[keep], new_positions])
        return taken

    def forget_before(self, time: int) -> None:
        """Drop waypoints no longer needed to sample at or after ``time``."""
        first = max(int(np.searchsorted(self._times, time, side="right")) - 1, 0)
        self._times, self._positions = self._times[first:], self._positions[first:]

    def sample(self, times: Stamps) -> Floats:
        """Positions [K, J] planned at ``times`` (int64 [K] ns); the timeline must not be empty."""
        if self.is_empty:
            raise ValueError("nothing is planned: splice a chunk before sampling the timeline")
        origin = self._times[0]
        at, knots = (times - origin) / S_TO_NS, (self._times - origin) / S_TO_NS
        return np.stack([np.interp(at, knots, self._positions[:, j]) for j in range(self._joints)], axis=1)
