"""The scenes that training files name, for what is drawn by a simulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xvla_ros.robots.problems import Problem
from xvla_ros.robots.profile import Profile, load_profile
from xvla_ros.training.config_file import TrainingError
from xvla_ros.training.dataset_settings import SceneSettings
from xvla_ros.training.order import quotas


def profile_of(scene: SceneSettings, key: str) -> Profile:
    """Return the profile of a scene's robot.

    Args:
        scene: of a training file.
        key: where it is there.

    Raises:
        TrainingError: the robot's file has several robots.
        ProfileError: the profile is wrong.
    """
    found = load_profile(scene.robot)
    if len(found) != 1:
        raise TrainingError([
            Problem("", f"{key}.robot", scene.robot, "a file with one robot", f"holds {len(found)} robots")
        ])  # fmt: skip
    return next(iter(found.values()))


class Shares:
    """Chooses scenes by their weights."""

    def __init__(self, scenes: Sequence[SceneSettings]) -> None:
        self._ends = np.cumsum(quotas([scene.weight for scene in scenes]))

    def draw(self, rng: np.random.Generator) -> int:
        """Return the number of a scene."""
        return int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
