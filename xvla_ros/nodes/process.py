# SPDX-License-Identifier: Apache-2.0
"""What a node's process has to do with the command that started it: signals, and progress. No rclpy here.

SIGINT and SIGTERM become a flag, taken before anything slow is imported: no exception, and nothing that shuts ROS down,
as where rclpy turns a message into Python, a KeyboardInterrupt becomes a RuntimeError that does not mention the signal.
"""

from __future__ import annotations

import json
import signal
from types import FrameType
from typing import Any

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


PROGRESS = "PROGRESS "


def tell(progress: dict[str, Any]) -> None:
    """Print one progress line."""
    print(PROGRESS + json.dumps(progress), flush=True)


def read_progress(line: str) -> dict[str, Any] | None:
    """Return the progress object of a line that a node printed, or None for any other line.

    Keys of ``watch_node``: time (ns of ROS time, 0 before the first /clock), start (ns of the first command, 0 before),
    elapsed (s of ROS time since), done, chunks, trajectories, state, reason, detail, episodes (those that are over:
    task, seed, instruction, success, wrong, elapsed). Those of ``evaluate_node`` are told there.
    """
    if not line.startswith(PROGRESS):
        return None
    progress: dict[str, Any] = json.loads(line[len(PROGRESS) :])
    return progress
