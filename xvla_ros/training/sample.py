"""One training sample: what a robot saw, and the waypoints that followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.model.data import Embodiment, Observation


@dataclass(frozen=True)
class Sample:
    """An observation with the clean chunk of actions that a policy should answer it with.

    Attributes:
        embodiment: whose sample this is; its ``domain_id`` and action mode are those of the training.
        images: slot name → uint8 [H, W, 3] RGB. An absent optional camera has no entry.
        state: float32 [P], the policy's units, as in an ``Observation``.
        actions: float32 [T, D], the policy's units, decoded width; waypoint ``i`` is due at
            ``stamp + first_waypoint_offset + i · waypoint_dt``. After the end of an episode its last waypoint repeats.
        mask: bool [T], True where the waypoint was recorded, False where it repeats the last one.
        instruction: what to do, in words.
        index: global number of the draw, or of the sample in its data set where it was not drawn.
        source: where it was recorded, for a message to a person: file, episode.
        stamp: ROS time in ns of the observation; for a LeRobot data set ns since the start of its episode.
        place: float32 [3] m, where what the instruction names lies in the scene's frame; None where nobody knows.
        row: number of the sample in ``Samples.train`` or ``held_out``, the same for every draw of it.
    """

    embodiment: Embodiment
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    mask: NDArray[np.bool_]
    instruction: str
    index: int
    source: str
    stamp: int
    row: int = -1
    place: NDArray[np.float32] | None = None

    @property
    def robot(self) -> str:
        """Name of the robot."""
        return self.embodiment.robot

    @property
    def domain_id(self) -> int:
        """Row of the soft prompts."""
        return self.embodiment.domain_id

    def observation(self) -> Observation:
        """Return the part that a policy reads, as ``Processor.batch`` takes it."""
        return Observation(self.embodiment, self.stamp, self.images, self.state, self.instruction)
