"""A decoded chunk: where the joints shall be, and when, in ROS units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xvla_ros.robots.kinematics.path import HELD, LAGGING, FollowedPath


@dataclass(frozen=True)
class Trajectory:
    """The path of one robot's joints, as points.

    Attributes:
        robot: its name.
        joints: J joint names of the policy, in policy order.
        times: int64 [T], ROS time in ns at which each point is due, strictly increasing.
        positions: float64 [T, J], rad or m.
        reach: tool name → how well its W waypoints are met; empty for actions in joint space.
        waypoints: int [W], which of the points are the policy's waypoints; the others lie between. None: all are.
    """

    robot: str
    joints: tuple[str, ...]
    times: NDArray[np.int64]
    positions: NDArray[np.float64]
    reach: Mapping[str, FollowedPath] = field(default_factory=dict)
    waypoints: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.times), len(self.joints)):
            expected = f"[{len(self.times)}, {len(self.joints)}]"
            raise ValueError(f"{self.robot}: positions have shape {list(self.positions.shape)}, expected {expected}")
        if len(self.times) > 1 and not np.all(np.diff(self.times) > 0):
            raise ValueError(f"{self.robot}: the times of a trajectory must increase from waypoint to waypoint")

    def out_of_reach(self) -> NDArray[np.bool_]:
        """Which points [T] are waypoints that some tool does not meet: held, or lagging behind."""
        missed = np.zeros(len(self.times), dtype=np.bool_)
        given = np.arange(len(self.times)) if self.waypoints is None else self.waypoints
        for path in self.reach.values():
            missed[given] |= np.array([status in (HELD, LAGGING) for status in path.status], dtype=np.bool_)
        return missed

    def nothing_reached(self) -> str:
        """Say which tool can reach none of its waypoints, and by how much; empty while every tool reaches some."""
        for name, path in self.reach.items():
            if path.status and path.count(HELD) == len(path.status):
                nearest = int(np.argmin(path.position_error))
                return (
                    f"tool {name!r} cannot reach any of {len(path.status)} waypoints; it stays "
                    f"{path.position_error[nearest]:.3g} m and {path.rotation_error[nearest]:.3g} rad from the nearest"
                )
        return ""
