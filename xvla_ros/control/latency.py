"""How long a policy takes: latencies of the recent past, and how they compare with how far its chunks reach."""

from __future__ import annotations

from collections import deque

from xvla_ros.types import Percentiles

# Conditioning needs d ≤ s ≤ H − d: a policy that takes more than half of its horizon cannot overlap it in time.
OVERLAP_SHARE = 0.5


class LatencyWindow:
    """The last ``size`` latencies in ms."""

    def __init__(self, size: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._added = 0
        self._summary = 0, Percentiles()  # of how many that were added, asked for far more often than added to

    def add(self, milliseconds: float) -> None:
        self._values.append(milliseconds)
        self._added += 1

    def percentiles(self) -> Percentiles:
        """Percentiles of what is in the window."""
        counted, summary = self._summary
        if counted != self._added:
            counted = self._added
            summary = Percentiles.of(self._values)
            self._summary = counted, summary
        return summary


class Pace:
    """The pace of one robot's policy.

    One that needs more than half of its own horizon cannot renew the plan while it is carried out, since what it saw
    is too old by then.

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
        """Take the time from an observation to its chunk."""
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
            return "the last chunk ran out before the next came"
        taken = self._latency.percentiles().p95 / 1e3
        return f"the policy takes {taken:.2f} s for chunks of {self.horizon:.2f} s: the arm stands and waits for each"
