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


# A clock that gains this much between two readings, and this many times what the steady clock gained, has been set; a
# simulator that runs faster than life gains less, and less at once.
LEAP_S, LEAP_RATIO = 0.2, 5.0
# A process that was late by this much takes a while to hear what was said meanwhile; one that is late all the time has
# to do with what it has heard in between.
SLEPT_S, SETTLE_S, SETTLED_FOR_S = 0.15, 0.1, 0.4


class ClockGuard:
    """Notices a ROS clock that stands still or jumps.

    A simulator that pauses stops ``/clock``; one that restarts sends it back to zero; a clock that is set leaps ahead.
    In each case what was planned in ROS time is no longer due when it says.
    """

    def __init__(self, timeout_s: float, period_s: float = 0.0) -> None:
        """Watch for ROS time that stands for ``timeout_s``; readings come every ``period_s`` or so."""
        self._timeout_s, self._sleep_s = timeout_s, SLEPT_S + period_s
        self._last_ros_ns: int | None = None
        self._last_advance_s = self._last_s = self._slept_from_s = 0.0
        self._settled_at_s = -SETTLED_FOR_S

    def update(self, ros_ns: int, steady_s: float) -> int:
        """Take a reading of both clocks; return by how many ns ROS time has jumped since the last, 0 where not."""
        if self._last_ros_ns is not None and self._sleeps(steady_s):
            self._slept_from_s, self._settled_at_s = self._last_s, steady_s + SETTLE_S
        jump = 0
        if self._last_ros_ns is not None:
            # a clock that was not heard while it went on has not jumped
            since = self._slept_from_s if steady_s < self._settled_at_s else self._last_advance_s
            jump = self._jump(ros_ns - self._last_ros_ns, steady_s - since)
        if ros_ns != self._last_ros_ns:
            self._last_advance_s = steady_s
        self._last_ros_ns, self._last_s = ros_ns, steady_s
        return jump

    def _sleeps(self, steady_s: float) -> bool:
        return steady_s - self._last_s > self._sleep_s and steady_s - self._settled_at_s > SETTLED_FOR_S

    def is_settled(self, steady_s: float, allowed_s: float) -> bool:
        """Whether ROS time as it was read last is what it is now.

        It is not where it has not advanced for ``allowed_s``, nor just after this process slept: what was said
        meanwhile, the clock among it, comes late and in turn.
        """
        return steady_s - self._last_advance_s <= allowed_s and steady_s >= self._settled_at_s

    @staticmethod
    def _jump(gained_ns: int, elapsed_s: float) -> int:
        if gained_ns < 0:
            return gained_ns
        leapt = gained_ns / 1e9 > max(LEAP_S, LEAP_RATIO * elapsed_s)
        return gained_ns - round(elapsed_s * 1e9) if leapt else 0

    def stopped_for(self, steady_s: float) -> float:
        """Seconds of steady time since ROS time last advanced, 0 while within the timeout."""
        idle = steady_s - self._last_advance_s
        return idle if self._last_ros_ns is not None and idle > self._timeout_s else 0.0
