"""Labelled pictures as tensors, drawn by number: the source of the objective ``vision``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xvla_ros.model.data import Embodiment
from xvla_ros.model.inputs.pictures import image_pipeline
from xvla_ros.robots import load_robot
from xvla_ros.training.data import draws
from xvla_ros.training.data.labels import Labeller, object_names
from xvla_ros.training.dataset_settings import Drawn
from xvla_ros.training.scenes import Shares


class LabelledPictures:
    """The endless sequence of labelled samples, by number; each process has worlds of its own.

    Args:
        settings: what is drawn.
        size: (height, width) of the network's pictures.
        seed: of everything.

    Attributes:
        profiles: of the scenes, in their order.
        embodiments: none: nobody's actions are trained.
        names: of the objects in any of them.
        views: of the robot with most.
        instructions: every sentence of the tasks.
        fingerprint: changes with the robots.

    Raises:
        ProfileError, UnknownSceneError, UnknownTaskError, SceneMismatchError, KinematicsError: naming what is wrong.
    """

    def __init__(self, settings: Drawn, size: tuple[int, int], seed: int) -> None:
        self.settings, self._size, self._seed = settings, size, seed
        self._shares = Shares(settings.scenes)
        self._labellers: dict[int, Labeller] = {}
        labellers = [self._labeller(scene) for scene in range(len(settings.scenes))]
        self.profiles = tuple(each.profile for each in labellers)
        self.embodiments: Mapping[str, Embodiment] = {}
        self.names = object_names(labellers)
        self.views = max(len(profile.cameras.slots) for profile in self.profiles)
        self.instructions = sorted({text for each in labellers for text in each.instructions})
        self.fingerprint = json.dumps([each.to_mapping() for each in self.profiles], sort_keys=True, default=str)

    def draw(self, index: int) -> dict[str, Tensor]:
        """Return the ``index``-th sample: the fields of a ``LabelledBatch``, of one."""
        rng = draws.generator(self._seed, "vision", index)
        scene = self._shares.draw(rng)
        labeller = self._labeller(scene)
        images, labels = labeller.draw(rng, self.names)
        pipeline = image_pipeline(labeller.profile.policy.image_pipeline)
        prepared = [pipeline(images[slot], self._size) for slot in labeller.profile.cameras.slots]
        count, objects = len(prepared), len(self.names)
        stacked = torch.zeros(self.views, 3, *self._size)
        stacked[:count] = torch.stack(prepared)
        seen, inside = torch.zeros(self.views, objects, 3), torch.zeros(self.views, objects, dtype=torch.bool)
        seen[:count], inside[:count] = torch.from_numpy(labels.seen), torch.from_numpy(labels.inside)
        return {
            "images": stacked,
            "viewed": torch.arange(self.views) < count,
            "seen": seen,
            "inside": inside,
            "places": torch.from_numpy(labels.places),
            "known": torch.from_numpy(labels.known),
            "scene": torch.tensor(scene),
        }

    def _labeller(self, scene: int) -> Labeller:
        if scene not in self._labellers:
            told = self.settings.scenes[scene]
            profile = load_robot(told.robot)
            self._labellers[scene] = Labeller(profile, told.task, self.settings.variation, self.settings.pixels)
        return self._labellers[scene]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_labellers": {}}
