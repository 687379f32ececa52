"""A decoded chunk: where the joints shall be, and when, in ROS units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trajectory:
    """Waypoints of one robot.

    Attributes:
        robot: its name.
        joints: J joint names of the policy, in policy order.
        times: int64 [T], ROS time in ns at which each waypoint is due, strictly increasing.
        positions: float64 [T, J], rad or m.
    """

    robot: str
    joints: tuple[str, ...]
    times: NDArray[np.int64]
    positions: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.times), len(self.joints)):
            expected = f"[{len(self.times)}, {len(self.joints)}]"
            raise ValueError(f"{self.robot}: positions have shape {list(self.positions.shape)}, expected {expected}")
        if len(self.times) > 1 and not np.all(np.diff(self.times) > 0):
            raise ValueError(f"{self.robot}: the times of a trajectory must increase from waypoint to waypoint")
