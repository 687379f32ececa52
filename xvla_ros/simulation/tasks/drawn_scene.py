"""A scene of which pictures are taken without an episode: nothing is stepped, arms are put where one likes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import MessageError, SimulationError
from xvla_ros.observation.images import view_of
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.tasks.catalogue import load_task
from xvla_ros.simulation.tasks.hands import hands_of
from xvla_ros.simulation.world import World

Picture = NDArray[np.uint8]


@dataclass(eq=False)
class DrawnScene:
    """One robot before one task.

    Args:
        profile: of the robot.
        task: of its scene.
        variation: of light, colours and cameras, 1 as in demonstrations.
        pixels: width and height of the pictures.

    Raises:
        SimulationError, KinematicsError: naming what is missing.
    """

    profile: Profile
    task: str
    variation: float = 1.0
    pixels: int = 256
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.profile)
        self._task = load_task(self.profile, self.task, variation=self.variation)
        self._hands = hands_of(self.world)
        blank = np.zeros((self.pixels, self.pixels, 3), np.uint8)
        for slot in self.profile.cameras.slots:
            try:
                view_of(blank, self.profile.cameras.by_name[slot])
            except MessageError as error:
                raise SimulationError(f"{self.profile.name}: camera {slot}: {error}") from error

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every sentence that the task may say."""
        return self._task.instructions

    @property
    def positions(self) -> NDArray[np.float64]:
        """[J], rad or m, in the profile's ``policy_order``."""
        return np.array(list(self.world.positions().values()))

    def pictures(self, slots: tuple[str, ...]) -> dict[str, Picture]:
        """Slot → uint8 [H, W, 3] RGB of the present state, as a policy sees it: turned and cropped by the profile.

        Raises:
            SimulationError: naming what to install.
        """
        cameras = self.profile.cameras.by_name
        return {slot: view_of(self.world.render(slot, self.pixels, self.pixels), cameras[slot]) for slot in slots}

    def close(self) -> None:
        """Free what drawing holds."""
        self.world.close()
