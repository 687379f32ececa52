# SPDX-License-Identifier: Apache-2.0
"""Pictures of a simulated scene with what the simulator knows of them: where cubes, bowl and fingertips are.

The source of the objective ``vision``, which a tower is pretrained on before it sees any demonstration. Layouts, light,
colours and cameras vary as in demonstrations of the task; the arms are anywhere over the cubes or on the way there, and
need not obey any physics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xvla_ros.model.inputs.pictures import CPU, image_pipeline
from xvla_ros.robots import load_robot
from xvla_ros.simulation.tasks.hands import OutOfReachError
from xvla_ros.simulation.tasks.moments import DrawnScene, Picture
from xvla_ros.training.config import Drawn
from xvla_ros.training.data import draws
from xvla_ros.training.data.draws import Shares
from xvla_ros.types import Embodiment, Floats

AWAY = 0.8  # share of the arms that are not drawn at home
POSTURES = 48  # of each hand over the cubes' region; others are mixed from them, as solving each would take too long
ABOVE = 0.12  # m, at most, of their fingertips above a cube
BESIDE = 0.04  # m, at most, of their fingertips beside it
ROLLS = 3  # turns of the hand that are tried for each posture
TOOL = "tool"  # name of fingertips, after the hand's name where there are two hands


@dataclass(frozen=True, eq=False)
class Labels:
    """What is where. V views, K objects.

    Attributes:
        seen: float32 [V, K, 3]: u and v, −1 … 1 from left to right and from top to bottom of the picture, and depth, m.
        inside: bool [V, K]: the object's middle is within the picture; what hides it does not count.
        places: float32 [K, 3], m, in the scene's frame.
        known: bool [K], whether the scene has such an object.
    """

    seen: NDArray[np.float32]
    inside: NDArray[np.bool_]
    places: NDArray[np.float32]
    known: NDArray[np.bool_]


def object_names(worlds: Sequence[Labeller]) -> tuple[str, ...]:
    """Return the names of all objects of some scenes, in a fixed order."""
    return tuple(sorted({name for world in worlds for name in world.names}))


@dataclass(eq=False)
class Labeller(DrawnScene):
    """Draws labelled pictures of one robot and task; see ``DrawnScene``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._postures = self._solve(np.random.default_rng(0))

    @property
    def names(self) -> tuple[str, ...]:
        """Objects of this scene."""
        return (*self._props(), *(_tool(name) for name in self._hands))

    def draw(self, rng: np.random.Generator, names: Sequence[str]) -> tuple[dict[str, Picture], Labels]:
        """Arrange the scene, and return pictures by slot with the labels of the objects called ``names``.

        Raises:
            SimulationError: naming what to install.
        """
        self._arrange(rng)
        return self.pictures(self.profile.cameras.slots), self.labels(names)

    def asked(
        self, rng: np.random.Generator, count: int
    ) -> tuple[dict[str, Picture], tuple[tuple[str, Floats, Floats], ...]]:
        """Arrange the scene; return slot 0's picture by its slot, and ``count`` instructions with the places they name.

        A place is [3] m in the scene's frame, and [3] in that picture, as of ``in_view``. Where the task has fewer
        instructions, some are repeated.

        Raises:
            SimulationError: naming what to install.
        """
        self._arrange(rng)
        images = self.pictures(self.profile.cameras.slots[:1])
        variants = self._task.variants
        chosen = [variants[number % len(variants)] for number in range(count)]
        return images, tuple((each.instruction, *self.place_of(each.goal.prop)) for each in chosen)

    def labels(self, names: Sequence[str]) -> Labels:
        """Return where the objects called ``names`` are in the present state of the world."""
        there = self._places()
        known = np.array([name in there for name in names])
        places = np.array([there.get(name, np.zeros(3)) for name in names])
        views = [self.in_view(slot, places) for slot in self.profile.cameras.slots]
        seen = np.stack(views)
        inside = (np.abs(seen[..., :2]) <= 1.0).all(axis=-1) & (seen[..., 2] > 0.0) & known
        return Labels(seen.astype(np.float32), inside, places.astype(np.float32), known)

    def _arrange(self, rng: np.random.Generator) -> None:
        layout = self._task.reset(self.world, rng)
        now, joints = self.positions, dict[str, float]()
        for name, hand in self._hands.items():
            postures = self._postures[name]
            if rng.random() >= AWAY or not len(postures):
                continue
            one, other = postures[rng.integers(len(postures), size=2)]
            there = one + rng.random() ** 3 * (other - one)
            mixed = now[hand.columns] + np.sqrt(rng.random()) * (there - now[hand.columns])
            joints.update(zip(hand.figures.joints, mixed.tolist(), strict=True))
            joints[hand.figures.gripper] = hand.figures.shut
        self.world.arrange(layout.props, joints)

    def _solve(self, rng: np.random.Generator) -> Mapping[str, Floats]:
        """Find postures [N, K] of each hand with its fingertips over places where cubes may lie."""
        found: dict[str, list[Floats]] = {name: [] for name in self._hands}
        for _ in range(POSTURES):
            self._task.reset(self.world, rng)
            cubes = [self.world.data.body(prop).xpos.copy() for prop in self.world.scene.props]
            for name, hand in self._hands.items():
                aim = min(cubes, key=hand.distance) + rng.uniform(-BESIDE, BESIDE, 3)
                aim[2] = cubes[0][2] + rng.uniform(0.0, ABOVE)
                rolls = rng.uniform(-np.pi, np.pi, ROLLS)
                with suppress(OutOfReachError):
                    found[name].append(hand.at(aim, hand.figures.tip, hand.approach_to(aim), rolls))
        return {name: np.array(postures) for name, postures in found.items()}

    def _props(self) -> tuple[str, ...]:
        bodies = [self.world.model.body(number).name for number in range(self.world.model.nbody)]
        return (*self.world.scene.props, *(name for name in ("bowl",) if name in bodies))

    def _places(self) -> Mapping[str, Floats]:
        positions = self.positions
        places = {prop: self.world.data.body(prop).xpos.copy() for prop in self._props()}
        for name, hand in self._hands.items():
            places[_tool(name)] = hand.point(positions[hand.columns], hand.figures.tip)
        return places


def _tool(hand: str) -> str:
    return f"{hand}_{TOOL}" if hand else TOOL


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
        ProfileError, SimulationError, KinematicsError: naming what is wrong.
    """

    def __init__(self, settings: Drawn, size: tuple[int, int], seed: int) -> None:
        self.settings, self._size, self._seed = settings, size, seed
        self._shares = Shares(settings.all_scenes)
        self._labellers: dict[int, Labeller] = {}
        labellers = [self._labeller(scene) for scene in range(len(settings.all_scenes))]
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
        prepared = [pipeline(images[slot], self._size, CPU) for slot in labeller.profile.cameras.slots]
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
            told = self.settings.all_scenes[scene]
            profile = load_robot(told.robot)
            self._labellers[scene] = Labeller(profile, told.task, self.settings.variation, self.settings.pixels)
        return self._labellers[scene]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_labellers": {}}
