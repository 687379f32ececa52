"""The scenes that training files name, for what is drawn by a simulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xvla_ros.training.dataset_settings import SceneSettings
from xvla_ros.training.order import quotas


class Shares:
    """Chooses scenes by their weights."""

    def __init__(self, scenes: Sequence[SceneSettings]) -> None:
        self._ends = np.cumsum(quotas([scene.weight for scene in scenes]))

    def draw(self, rng: np.random.Generator) -> int:
        """Return the number of a scene."""
        return int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
