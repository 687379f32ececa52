# SPDX-License-Identifier: Apache-2.0
"""The way through a benchmark, whoever wrote it: its tasks, and an arena in which an episode is reset, seen and acted.

Poses are of the hand's grip site in the simulator's world frame, in m; rotations are matrices [3, 3].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.types import Floats

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite.

    Attributes:
        index: by which users name it.
        name: the benchmark's own.
        instruction: what a policy is told.
        init_states: how many ways of beginning come with it.
    """

    index: int
    name: str
    instruction: str
    init_states: int


@dataclass(frozen=True)
class Beginning:
    """How an episode begins.

    Attributes:
        task, init_state: which of the suite's.
        episode: its number within the task, from 0 on.
        env_seed: places what no init state holds, such as furniture.
        shuffle: seed by which things change places with each other; None leaves them in those of the init state.
    """

    task: int
    episode: int
    init_state: int
    env_seed: int
    shuffle: int | None = None


@dataclass(frozen=True, eq=False)
class Sight:
    """What the simulator shows after some steps.

    Attributes:
        images: camera → uint8 [H, W, 3] RGB as the simulator draws it, untouched; empty where nothing was drawn.
        position, rotation: of the grip site, by the arm's controller.
        observed_position: the same as the simulator's own observation reports it, up to a control step older.
        joints: [J] rad, the arm's.
        gripper: [G] m, its fingers'.
        base: position of the arm's base in the world; its axes are the world's.
        settling: [S, J + G], joints and gripper since a reset, one a control step, the last of them now; else empty.

    Of a simulator whose actions are joint positions ``joints`` holds all of them, grippers too, and what is said of
    hand and base is empty.
    """

    images: Mapping[str, Pixels]
    position: Floats
    rotation: Floats
    observed_position: Floats
    joints: Floats
    gripper: Floats
    base: Floats
    settling: Floats = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True, eq=False)
class Acted:
    """What came of some actions.

    Attributes:
        steps: how many were carried out; fewer than given where the judge was satisfied before.
        success: the benchmark's own judge is satisfied.
        sight: after the last of them, with pictures where they were asked for.
        film: view → uint8 [N, H, W, 3] RGB, what was filmed on the way; ``beside`` is seen by no policy.
        over: the benchmark has ended the episode, whatever steps are left.
    """

    steps: int
    success: bool
    sight: Sight
    film: Mapping[str, Pixels]
    over: bool = False


class Arena(Protocol):
    """A simulator that one episode at a time runs in."""

    def begin(self, beginning: Beginning) -> Sight:
        """Reset to the beginning of an episode and let everything settle; return what is seen then."""

    def act(self, actions: NDArray[np.float32], *, look: bool = True, film_every: int = 0) -> Acted:
        """Carry out actions [N, 7], or [N, J], one each control step, until the judge is satisfied.

        Args:
            actions: position (m) and rotation vector (rad) of the grip site in the world, and the gripper: above 0
                closes, below opens. Or joint positions, as ``Sight.joints``.
            look: draw the cameras after the last one.
            film_every: film every so many steps; 0 films nothing.
        """

    def look(self) -> Mapping[str, Pixels]:
        """Draw the cameras as things stand, camera → uint8 [H, W, 3] RGB; ``act`` draws up to a step before."""

    def close(self) -> None:
        """End the simulator."""
