"""Whether joint paths keep the tools inside their boxes: the last look before a command."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xvla_ros.robots.profile.schema import Tool
from xvla_ros.robots.tool_arm import ToolArm

Floats = NDArray[np.float64]

TOLERANCE = 0.01  # m; waypoints are kept inside exactly, the way between them and lagging joints not


class Workspace:
    """The boxes of a robot's tools.

    Args:
        arms: by tool name; without any there is nothing to leave.
    """

    def __init__(self, arms: Mapping[str, ToolArm]) -> None:
        self._arms = dict(arms)

    def left_by(self, path: Floats, start: Floats) -> str:
        """Say which tool leaves its box on a path [K, J] in rad or m from ``start`` [J]; empty where none does.

        A tool that is outside at the start may come back or stay, but goes no further out.
        """
        for name, arm in self._arms.items():
            positions = arm.chain.poses(np.concatenate([start[None], path])[:, arm.columns]).positions
            depth = _outside(positions, arm.tool)
            farthest = int(np.argmax(depth))
            if depth[farthest] > max(float(depth[0]), 0.0) + TOLERANCE:
                where = ", ".join(f"{value:.3f}" for value in positions[farthest])
                return f"tool {name!r} would leave its workspace box by {depth[farthest]:.3f} m, at ({where})"
        return ""


def _outside(positions: Floats, tool: Tool) -> Floats:
    """How far [K] in m positions [K, 3] are outside the tool's box, 0 inside."""
    low, high = np.array(tool.workspace_min), np.array(tool.workspace_max)
    beyond = np.maximum(np.maximum(low - positions, positions - high), 0.0)
    outside: Floats = beyond.max(axis=1)
    return outside
