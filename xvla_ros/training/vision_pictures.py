"""Labelled pictures as tensors, drawn by number, for the pretraining of a vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xvla_ros.model.inputs.pictures import image_pipeline
from xvla_ros.robots import load_robot
from xvla_ros.training import draws
from xvla_ros.training.scenes import Shares
from xvla_ros.training.vision_config import VisionSettings
from xvla_ros.training.vision_labels import Labeller
from xvla_ros.training.vision_task import LabelledBatch


class Pictures(Dataset[dict[str, Tensor]]):
    """The endless sequence of labelled samples, by number; each process has worlds of its own."""

    def __init__(self, settings: VisionSettings, size: tuple[int, int], views: int, names: Sequence[str]) -> None:
        self._settings, self._size, self._views, self._names = settings, size, views, tuple(names)
        self._shares = Shares(settings.scenes)
        self._labellers: dict[int, Labeller] = {}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = draws.generator(self._settings.seed, "vision", index)
        scene = self._shares.draw(rng)
        labeller = self._labeller(scene)
        images, labels = labeller.draw(rng, self._names)
        pipeline = image_pipeline(labeller.profile.policy.image_pipeline)
        prepared = [pipeline(images[slot], self._size) for slot in labeller.profile.cameras.slots]
        count, objects = len(prepared), len(self._names)
        stacked = torch.zeros(self._views, 3, *self._size)
        stacked[:count] = torch.stack(prepared)
        seen, inside = torch.zeros(self._views, objects, 3), torch.zeros(self._views, objects, dtype=torch.bool)
        seen[:count], inside[:count] = torch.from_numpy(labels.seen), torch.from_numpy(labels.inside)
        return {
            "images": stacked,
            "viewed": torch.arange(self._views) < count,
            "seen": seen,
            "inside": inside,
            "places": torch.from_numpy(labels.places),
            "known": torch.from_numpy(labels.known),
            "scene": torch.tensor(scene),
        }

    def _labeller(self, scene: int) -> Labeller:
        if scene not in self._labellers:
            self._labellers[scene] = labeller_of(self._settings, scene)
        return self._labellers[scene]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_labellers": {}}


def labeller_of(settings: VisionSettings, scene: int) -> Labeller:
    """Return what draws the pictures of one of the settings' scenes.

    Raises:
        ProfileError, UnknownSceneError, UnknownTaskError, SceneMismatchError, KinematicsError: naming what is wrong.
    """
    told = settings.scenes[scene]
    return Labeller(load_robot(told.robot), told.task, settings.variation, settings.pixels)


def collate(samples: Sequence[Mapping[str, Tensor]]) -> LabelledBatch:
    """Stack samples."""
    return LabelledBatch(**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]})
