"""Stops that only an operator ends: the first cause is kept until it is cleared."""

from __future__ import annotations

from xvla_ros.observation.faults import Fault

ESTOP, OPERATOR = "estop", "operator"


class StopLatch:
    """Remembers why a robot was stopped; later causes do not replace the first."""

    def __init__(self) -> None:
        self._cause: Fault | None = None

    @property
    def cause(self) -> Fault | None:
        """Why the robot is stopped, None while it is not."""
        return self._cause

    def set(self, reason: str, detail: str) -> bool:
        """Stop for ``reason``; return whether that is new."""
        if self._cause is not None:
            return False
        self._cause = Fault(reason, detail)
        return True

    def clear(self) -> bool:
        """End the stop; return whether there was one."""
        stopped, self._cause = self._cause is not None, None
        return stopped
