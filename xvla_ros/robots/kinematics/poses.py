"""Poses of a tool in the frame of its base link."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation, Slerp

from xvla_ros.robots.rotations import matrix_to_quaternion

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Poses:
    """One pose or many: any number of leading axes, the same for both parts.

    Attributes:
        positions: float64 [..., 3], m.
        rotations: float64 [..., 3, 3]; columns are the tool's axes.
    """

    positions: Floats
    rotations: Floats

    def __post_init__(self) -> None:
        if self.positions.shape[-1:] != (3,) or self.rotations.shape != (*self.positions.shape, 3):
            raise ValueError(
                f"poses have positions {list(self.positions.shape)} and rotations {list(self.rotations.shape)}, "
                "expected [..., 3] and [..., 3, 3]"
            )

    def __getitem__(self, index: int | slice) -> Poses:
        return Poses(self.positions[index], self.rotations[index])

    def __len__(self) -> int:
        return len(self.positions)

    def between(self, times: Floats, at: Floats) -> Poses:
        """The path through T poses at ``times`` [T], seen at ``at`` [K]; before its begin and after its end it stands.

        Positions follow a cubic that overshoots no pose (Fritsch and Carlson 1980), rotations the great circle.

        Args:
            times: strictly increasing, in any unit, that of ``at``.
        """
        where = np.clip(at, times[0], times[-1])
        if len(self) == 1:
            return Poses(np.repeat(self.positions, len(where), axis=0), np.repeat(self.rotations, len(where), axis=0))
        positions: Floats = PchipInterpolator(times, self.positions, axis=0)(where)
        rotations: Floats = Slerp(times, Rotation.from_matrix(self.rotations))(where).as_matrix()
        return Poses(positions, rotations)

    def quaternions_xyzw(self) -> Floats:
        """The rotations as unit quaternions [..., 4] in the order of ROS and of AgiBot's data: x, y, z, w ≥ 0."""
        return matrix_to_quaternion(self.rotations)

    def quaternions_wxyz(self) -> Floats:
        """The rotations as unit quaternions [..., 4] in the order of MuJoCo and genie_sim: w ≥ 0, x, y, z."""
        return np.roll(self.quaternions_xyzw(), 1, axis=-1)
