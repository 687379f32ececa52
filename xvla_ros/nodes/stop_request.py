"""SIGINT and SIGTERM as a flag, taken before anything slow is imported.

No exception, and nothing that shuts ROS down: where rclpy turns a message into Python, a KeyboardInterrupt becomes a
RuntimeError that says nothing of it.
"""

from __future__ import annotations

import signal
from types import FrameType


class StoppedError(Exception):
    """What a node was doing is ended by SIGINT or SIGTERM."""


class StopRequest:
    """Whether SIGINT or SIGTERM has come since this was made, in the main thread."""

    def __init__(self) -> None:
        # A plain flag: the main thread may be interrupted while it holds the lock of an Event.
        self.made = False
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._make)

    def _make(self, signum: int, frame: FrameType | None) -> None:
        self.made = True

    def check(self) -> None:
        """Raise StoppedError once one has come."""
        if self.made:
            raise StoppedError
