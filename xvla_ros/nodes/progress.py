# SPDX-License-Identifier: Apache-2.0
"""What one of our nodes reports to the command that started it, a line at a time. No rclpy here."""

from __future__ import annotations

import json
from typing import Any

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
