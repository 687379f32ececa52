"""How long a policy takes, against how far ahead its chunks reach."""

from __future__ import annotations

from xvla_ros.control.latency import LatencyWindow, Percentiles

# Conditioning needs d ≤ s ≤ H − d: a policy that takes more than half of its horizon cannot overlap it in time.
OVERLAP_SHARE = 0.5


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
