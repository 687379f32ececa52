"""What a robot is doing, in the words of PolicyStatus: states, reasons to hold, counters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xvla_ros.observation.faults import Fault

INACTIVE, RUNNING, HOLDING, STOPPED = "inactive", "running", "holding", "stopped"
POLICY_LATE, POLICY_ERROR = "policy_late", "policy_error"
CLOCK_STOPPED, CONTROLLER_LOST = "clock_stopped", "controller_lost"
UNTRAINED = "untrained"
LIMIT, NOT_FOLLOWING = "limit", "not_following"
OF_POLICY = (POLICY_LATE, POLICY_ERROR, LIMIT)  # faults of a chunk, which the next one may mend


@dataclass(frozen=True)
class ControlStatus:
    """What a robot is doing and how it has gone since it was activated; counters as in PolicyStatus."""

    state: str = INACTIVE
    reason: str = ""
    detail: str = ""
    chunks: int = 0
    trajectories: int = 0
    dropped_chunks: int = 0
    holds: int = 0
    limited_points: int = 0

    def to(self, state: str, cause: Fault | None = None) -> ControlStatus:
        """Return it in another state for some cause; one that ran and now holds or is stopped has held once more."""
        reason, detail = ("", "") if cause is None else (cause.reason, cause.detail)
        held = self.state == RUNNING and state in (HOLDING, STOPPED)
        return replace(self, state=state, reason=reason, detail=detail, holds=self.holds + held)

    def plus(self, **counts: int) -> ControlStatus:
        """Return it with some counters grown."""
        grown: dict[str, Any] = {name: getattr(self, name) + count for name, count in counts.items()}
        return replace(self, **grown)
