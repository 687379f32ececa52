"""Moments of a task without an episode: a layout, arms somewhere on their way, and what the expert would do from there.

The expert has no memory: what it wants is a function of where everything is. So any posture over any layout is as good
as one that was reached by simulating, and a picture of it goes with a plan for each thing that may be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.simulation.tasks.drawn_scene import DrawnScene, Picture
from xvla_ros.simulation.tasks.hands import UnreachableError
from xvla_ros.simulation.tasks.layouts import Layout, NoLayoutError
from xvla_ros.simulation.tasks.plan import Plan
from xvla_ros.simulation.tasks.task import Expert

Floats = NDArray[np.float64]

BEGINNING = 0.3  # share of the moments with the arms as an episode starts: the words alone decide what is next
BEYOND = 0.45  # share of those in which the hand has grasped, where a task grasps
MISSED = 0.1  # share of the others that go on although nothing was grasped
ELSEWHERE = 0.2  # share of those on the way that come from what another instruction asks for
LEAST, MOST = 0.005, 0.3  # rad: between which the spread of the joints beside the way is drawn, by its logarithm
SHRINK = 0.5  # of that, where fingertips would be below the table
DEEP = -0.002  # m
TRIES = 20  # layouts until something can be asked for


@dataclass(frozen=True)
class Asked:
    """An instruction, and the expert's plan that follows it from a moment on.

    Attributes:
        instruction: in words.
        plan: of the expert.
        place: [3] m, in the scene's frame, where the middle of what is named lies.
    """

    instruction: str
    plan: Plan
    place: Floats


@dataclass(frozen=True, eq=False)
class Moment:
    """One state of a scene.

    Attributes:
        images: slot → uint8 [H, W, 3] RGB.
        positions: [J], rad or m, in the profile's ``policy_order``.
        asked: instructions that differ, each with its plan.
    """

    images: Mapping[str, Picture]
    positions: Floats
    asked: tuple[Asked, ...]


@dataclass(eq=False)
class Moments(DrawnScene):
    """Draws moments of one robot and task; see ``DrawnScene``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._start = self.positions

    def draw(self, rng: np.random.Generator, asked: int, *, pictures: bool = True) -> list[Moment]:
        """Return moments of one layout, of which ``asked`` instructions are asked in all.

        It is one moment where the hands are empty and as much can be asked for.

        Args:
            rng: decides; the same state of it gives the same moments.
            asked: how many.
            pictures: whether they are drawn; they take most of the time beside the expert's inverse kinematics.

        Raises:
            NoLayoutError: the expert reaches nothing.
            RenderingUnavailableError: naming what to install.
        """
        experts = self._experts(rng, asked)
        props = experts[0][0].props
        made: list[Moment] = []
        while asked > 0:
            self._put(self._start)
            self.world.arrange(props)
            if rng.random() < BEYOND and experts[0][1].take_hold(self.world, rng):
                chosen = experts[:1]
            else:
                chosen = experts[:asked]
                if rng.random() >= BEGINNING:
                    self._set_out(rng, chosen)
            made.append(self._moment(chosen, pictures))
            asked -= len(chosen)
        return made

    def _experts(self, rng: np.random.Generator, asked: int) -> list[tuple[Layout, Expert]]:
        """Experts for as many variants of one layout as are asked for, of those that they reach."""
        for _ in range(TRIES):
            self._task.reset(self.world, rng)
            self._start = self.positions
            found: list[tuple[Layout, Expert]] = []
            for layout in self._task.variants:
                with suppress(UnreachableError):
                    expert = self._task.expert(self.world, layout)
                    expert.plan(self.world)
                    found.append((layout, expert))
                if len(found) == asked:
                    break
            if found:
                return found
        raise NoLayoutError(f"task {self.task!r}: of {TRIES} layouts the expert reaches nothing; move the regions")

    def _moment(self, experts: list[tuple[Layout, Expert]], pictures: bool) -> Moment:
        asked = tuple(self._asked(layout, expert) for layout, expert in experts)
        return Moment(self.pictures(self.profile.cameras.slots if pictures else ()), self.positions, asked)

    def _set_out(self, rng: np.random.Generator, experts: list[tuple[Layout, Expert]]) -> None:
        """Moves the arms on their way, and beside it."""
        if len(experts) > 1 and rng.random() < ELSEWHERE:
            self._go(experts[1][1], 1.0)
        self._go(experts[0][1], rng.random(), empty=rng.random() >= MISSED)
        self._lead_astray(rng)

    def _asked(self, layout: Layout, expert: Expert) -> Asked:
        place = self.world.data.body(layout.goal.prop).xpos.copy()
        return Asked(layout.instruction, expert.plan(self.world), place)

    def _go(self, expert: Expert, share: float, *, empty: bool = True) -> None:
        """Moves the arms along a share of the way; of a way with something in the hand only if not ``empty``."""
        plan = expert.plan(self.world)
        self._put(plan.at([share * (expert.empty_until(plan) if empty else plan.duration)])[0])

    def _put(self, positions: Floats) -> None:
        order = self.profile.joints.policy_order
        self.world.arrange({}, dict(zip(order, positions.tolist(), strict=True)))

    def _lead_astray(self, rng: np.random.Generator) -> None:
        """Moves the arms beside the way, grippers as they are; not into the table."""
        order = self.profile.joints.policy_order
        joints = [self.profile.joints.by_name[joint] for joint in order]
        lower, upper = np.array([j.lower for j in joints]), np.array([j.upper for j in joints])
        here = self.positions
        beside = np.exp(rng.uniform(np.log(LEAST), np.log(MOST))) * rng.normal(size=len(order))
        for hand in self._hands.values():
            beside[hand.gripper] = 0.0
        while True:
            there = np.clip(here + beside, lower, upper)
            heights = [hand.point(there[hand.columns], hand.figures.tip)[2] for hand in self._hands.values()]
            if min(heights) > DEEP or np.abs(beside).max() < LEAST:
                break
            beside *= SHRINK
        self._put(there)
