# SPDX-License-Identifier: Apache-2.0
"""Where the props of a task lie and which of them an instruction names, drawn from a random generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xvla_ros.errors import SimulationError

Place = tuple[float, float, float]
Rectangle = tuple[tuple[float, float], tuple[float, float]]

TRIES = 200


@dataclass(frozen=True)
class Goal:
    """What an instruction names.

    Attributes:
        prop: the cube.
        hand: the arm; empty where any will do.
    """

    prop: str
    hand: str = ""


@dataclass(frozen=True)
class Layout:
    """One episode's beginning.

    Attributes:
        task, robot: which.
        instruction: what to do, in words.
        goal: what that means.
        hand: the arm that the expert uses; the goal's, where it names one.
        props: prop → (x, y, yaw) on the table.
        variant: which of the layout's goals this is; those of one generator state share everything else.
    """

    task: str
    robot: str
    instruction: str
    goal: Goal
    hand: str
    props: Mapping[str, Place]
    variant: int = 0


@dataclass(frozen=True)
class Regions:
    """Where a task's props may lie.

    Attributes:
        cubes: rectangles ((x, y), (x, y)); each cube takes one of them.
        bowl: rectangle of the bowl's middle, None where the scene has none.
        apart: m between the middles of two cubes.
        clear: m between the middles of a cube and the bowl.
        keep_off: (x, y, m): places with the distance that cubes keep from them.
    """

    cubes: tuple[Rectangle, ...]
    bowl: Rectangle | None = None
    apart: float = 0.06
    clear: float = 0.095
    keep_off: tuple[tuple[float, float, float], ...] = ()

    def draw(self, cubes: Sequence[str], rng: np.random.Generator) -> dict[str, Place]:
        """Draw random places for the props, none on another.

        Raises:
            SimulationError: there is no room.
        """
        for _ in range(TRIES):
            props: dict[str, Place] = {}
            if self.bowl is not None:
                x, y = rng.uniform(*self.bowl).tolist()
                props["bowl"] = (x, y, 0.0)
            for cube in cubes:
                region = self.cubes[int(rng.integers(len(self.cubes)))]
                x, y = rng.uniform(*region).tolist()
                props[cube] = (x, y, float(rng.uniform(-np.pi, np.pi)))
            if self._fit(props):
                return props
        message = f"{len(cubes)} cubes {self.apart} m apart do not fit into {self.cubes}; widen the regions"
        raise SimulationError(message)

    def _fit(self, props: Mapping[str, Place]) -> bool:
        cubes = np.array([place[:2] for prop, place in props.items() if prop != "bowl"])
        gaps = np.linalg.norm(cubes[:, None] - cubes[None], axis=-1) + 9.0 * np.eye(len(cubes))
        kept = [(np.array([x, y]), distance) for x, y, distance in self.keep_off]
        if "bowl" in props:
            kept.append((np.array(props["bowl"][:2]), self.clear))
        return bool(gaps.min() >= self.apart) and all(
            bool((np.linalg.norm(cubes - spot, axis=1) >= distance).all()) for spot, distance in kept
        )


def in_order(goals: Sequence[Goal], rng: np.random.Generator) -> list[Goal]:
    """Return the goals in random order; the second differs from the first in only one thing, where possible.

    So the first two episodes of a layout differ either in the cube or in the arm that is named, and in nothing else: a
    policy that ignores its instruction fails one of them.
    """
    shuffled = [goals[i] for i in rng.permutation(len(goals))]
    first = shuffled[0]
    others = [goal for goal in shuffled[1:] if (goal.prop == first.prop) != (goal.hand == first.hand)]
    if others:
        shuffled.remove(others[0])
        shuffled.insert(1, others[0])
    return shuffled
