# SPDX-License-Identifier: Apache-2.0
"""The two clocks of control: ROS time for what is planned, steady for what must be noticed; how long things take."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from xvla_ros.types import Percentiles


class Clock(Protocol):
    """Where control reads time, so that tests can hand it a clock of their own."""

    def ros_ns(self) -> int:
        """Return ROS time in ns; it stands still or jumps as a simulator makes it."""

    def steady_s(self) -> float:
        """Return monotonic time in s, whatever ROS time does."""


class SystemClock:
    """Both clocks of this machine, for use without a ROS graph."""

    def ros_ns(self) -> int:
        return time.time_ns()

    def steady_s(self) -> float:
        return time.monotonic()


# A clock that gains this much between two readings, and this many times what the steady clock gained, has been set; a
# simulator that runs faster than real time gains less between two readings.
LEAP_S, LEAP_RATIO = 0.2, 5.0
# A process that was late by SLEPT_S needs SETTLE_S to receive the messages of that time. One that is late all the time
# must do with what it has received: the wait comes again only after SETTLED_FOR_S.
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
            # a clock that went on while it was not heard has not jumped
            since = self._slept_from_s if steady_s < self._settled_at_s else self._last_advance_s
            jump = self._jump(ros_ns - self._last_ros_ns, steady_s - since)
        if ros_ns != self._last_ros_ns:
            self._last_advance_s = steady_s
        self._last_ros_ns, self._last_s = ros_ns, steady_s
        return jump

    def _sleeps(self, steady_s: float) -> bool:
        return steady_s - self._last_s > self._sleep_s and steady_s - self._settled_at_s > SETTLED_FOR_S

    def is_settled(self, steady_s: float, allowed_s: float) -> bool:
        """Say whether the ROS time read last is still current.

        It is not where it has not advanced for ``allowed_s``, nor just after this process slept: the messages of that
        time, the clock's among them, arrive late and one after another.
        """
        return steady_s - self._last_advance_s <= allowed_s and steady_s >= self._settled_at_s

    @staticmethod
    def _jump(gained_ns: int, elapsed_s: float) -> int:
        if gained_ns < 0:
            return gained_ns
        leapt = gained_ns / 1e9 > max(LEAP_S, LEAP_RATIO * elapsed_s)
        return gained_ns - round(elapsed_s * 1e9) if leapt else 0

    def stopped_for(self, steady_s: float) -> float:
        """Return the seconds of steady time since ROS time last advanced; 0 within the timeout."""
        idle = steady_s - self._last_advance_s
        return idle if self._last_ros_ns is not None and idle > self._timeout_s else 0.0


# Conditioning needs d ≤ s ≤ H − d: a policy that takes more than half of its horizon cannot overlap it in time.
OVERLAP_SHARE = 0.5


class LatencyWindow:
    """The last ``size`` latencies in ms."""

    def __init__(self, size: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._added = 0
        self._summary = 0, Percentiles()  # kept with the count it was made of: read far more often than added to

    def add(self, milliseconds: float) -> None:
        self._values.append(milliseconds)
        self._added += 1

    def percentiles(self) -> Percentiles:
        """Return the percentiles of the values in the window."""
        counted, summary = self._summary
        if counted != self._added:
            counted = self._added
            summary = Percentiles.of(self._values)
            self._summary = counted, summary
        return summary


class Pace:
    """The pace of one robot's policy.

    A policy that needs more than half of its own horizon cannot renew the plan while it is carried out: what it saw is
    too old by then.

    Args:
        lead: s that pass between a command and its first point.

    Attributes:
        horizon: s from the first to the last waypoint of the newest chunk, 0 before the first.
    """

    def __init__(self, lead: float) -> None:
        self._lead = lead
        self._latency = LatencyWindow()
        self.horizon = 0.0

    def add(self, seconds: float) -> None:
        """Add the time from an observation to its chunk, in s."""
        self._latency.add(seconds * 1e3)

    @property
    def inference_ms(self) -> Percentiles:
        return self._latency.percentiles()

    @property
    def inference_ns(self) -> int:
        """The time to reckon with."""
        return round(self._latency.percentiles().p95 * 1e6)

    @property
    def is_too_slow(self) -> bool:
        """Whether the policy needs more of its horizon than chunks can overlap."""
        delay = self._latency.percentiles().p95 / 1e3 + self._lead
        return 0.0 < self.horizon * OVERLAP_SHARE < delay

    def why_late(self) -> str:
        """Say why a chunk ran out before the next one came."""
        if not self.is_too_slow:
            return "the last chunk ended before the next one arrived"
        taken = self._latency.percentiles().p95 / 1e3
        return (
            f"the policy takes {taken:.2f} s for chunks of {self.horizon:.2f} s: the arm stops and waits for each chunk"
        )
