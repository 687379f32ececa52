"""The two clocks of control: ROS time for what is planned, the steady clock for what must be noticed."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where control reads time, so that tests can hand it a clock of their own."""

    def ros_ns(self) -> int:
        """ROS time in ns; stands still or jumps as a simulator makes it."""

    def steady_s(self) -> float:
        """Monotonic time in s, whatever ROS time does."""


class SystemClock:
    """Both clocks of this machine, for use without a ROS graph."""

    def ros_ns(self) -> int:
        return time.time_ns()

    def steady_s(self) -> float:
        return time.monotonic()


class ClockGuard:
    """Notices a ROS clock that stands still or jumps back.

    A simulator that pauses stops ``/clock``; one that restarts sends it back to zero. In both cases what was planned
    in ROS time is no longer due when it says.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last_ros_ns: int | None = None
        self._last_advance_s = 0.0

    def update(self, ros_ns: int, steady_s: float) -> bool:
        """Take a reading of both clocks; return whether ROS time has jumped back since the last."""
        jumped = self._last_ros_ns is not None and ros_ns < self._last_ros_ns
        if self._last_ros_ns is None or ros_ns != self._last_ros_ns:
            self._last_advance_s = steady_s
        self._last_ros_ns = ros_ns
        return jumped

    def stopped_for(self, steady_s: float) -> float:
        """Seconds of steady time since ROS time last advanced, 0 while within the timeout."""
        idle = steady_s - self._last_advance_s
        return idle if self._last_ros_ns is not None and idle > self._timeout_s else 0.0
