# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM as a flag, taken before anything slow is imported.

No exception, and nothing that shuts ROS down: where rclpy turns a message into Python, a KeyboardInterrupt becomes a
RuntimeError that does not mention the signal.
"""

from __future__ import annotations

import signal
from types import FrameType

from xvla_ros.errors import Interrupted


class StopRequest:
    """Whether SIGINT or SIGTERM has come since this was made, in the main thread."""

    def __init__(self) -> None:
        # A plain value: the main thread may be interrupted while it holds the lock of an Event.
        self._signum: int | None = None
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._make)

    @property
    def made(self) -> bool:
        """Whether one has come."""
        return self._signum is not None

    def _make(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum

    def check(self) -> None:
        """Raise Interrupted once one has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)
