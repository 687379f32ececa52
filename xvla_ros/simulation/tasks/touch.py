# SPDX-License-Identifier: Apache-2.0
"""Touch the named cube, with the named arm where there are two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from xvla_ros.robots.family import TOUCH_HOVER, TOUCH_PRESS
from xvla_ros.simulation.parts import CUBES
from xvla_ros.simulation.tasks.plan import ExpertPlan, Leg
from xvla_ros.simulation.tasks.task import Cell, Expert, Goal, Layout, Task, spoken, within
from xvla_ros.simulation.world import World
from xvla_ros.types import Floats

FUNNEL = 0.8, 0.5  # halves of a cube beside it, and m for each m above it, from where the way leads straight down
MOVED = 0.002  # m by which a cube must move for its postures to be sought anew
UNDECIDED = 0.03  # m: a cube this near to both arms is not asked for without naming an arm


class Touch(Task):
    """See the module."""

    name: ClassVar[str] = "touch"
    done: ClassVar[str] = "touched"
    time_limit: ClassVar[float] = 6.0

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every sentence that the task may say."""
        hands = ("", *self._names) if len(self._names) > 1 else ("",)
        return tuple(self._sentence(Goal(cube, hand)) for cube in CUBES for hand in hands)

    def expert(self, world: World, layout: Layout) -> Expert:
        """Return the expert for the episode that ``reset`` began."""
        return TouchExpert(self._cell_of(world), layout)

    def _sentence(self, goal: Goal) -> str:
        return f"touch the {spoken(goal.prop)}" + (f" with the {goal.hand} arm" if goal.hand else "")

    def _goals(self, cell: Cell, props: Mapping[str, tuple[float, float, float]]) -> Sequence[Goal]:
        goals = []
        for prop in cell.world.scene.props:
            able = [name for name, hand in cell.hands.items() if within(hand, props[prop])]
            distances = sorted(hand.distance(props[prop]) for hand in cell.hands.values())
            if (
                self._nearest(cell, props[prop]) in able
                and distances[-1] - distances[0] > UNDECIDED * (len(distances) > 1) - 1e-9
            ):
                goals.append(Goal(prop))
            goals += [Goal(prop, name) for name in able if name]
        return goals

    def _judge(self, cell: Cell, layout: Layout) -> tuple[bool, bool]:
        goal = layout.goal
        touches = cell.contacts.touches()
        right = {(hand, goal.prop) for hand in cell.hands if goal.hand in ("", hand)}
        return bool(touches & right), bool(touches - right)


class TouchExpert(Expert):
    """Goes over the cube and down on it."""

    def __init__(self, cell: Cell, layout: Layout) -> None:
        self._cell, self._prop, self._name = cell, layout.goal.prop, layout.hand
        self._hand = cell.hands[layout.hand]
        self._at: Floats = np.full(3, np.inf)
        self._over = self._on = cell.home

    def plan(self, world: World) -> ExpertPlan:
        """Plan to over the cube, then down; straight down where the hand is near enough."""
        cell, hand = self._cell, self._hand
        self._look()
        now = cell.positions
        beside = hand.point(now[hand.columns], hand.figures.tip) - self._target()
        apart, above = float(np.linalg.norm(beside[:2])), float(beside[2])
        down = Leg(self._on, stop=True)
        near, wider = FUNNEL
        if above > -0.01 and apart < near * cell.half(self._prop) + wider * max(above, 0.0):
            return cell.way(now, [down])
        return cell.way(now, [Leg(self._over), down])

    def _target(self) -> Floats:
        return self._at + np.array([0.0, 0.0, self._cell.half(self._prop) - TOUCH_PRESS], np.float64)

    def _look(self) -> None:
        """Solve for the postures again when the cube has moved."""
        place = self._cell.place(self._prop)
        if np.linalg.norm(place - self._at) < MOVED:
            return
        self._at = place
        target, shut = self._target(), self._hand.figures.shut
        on = self._hand.touching(target)
        over = self._hand.touching(target + np.array([0.0, 0.0, TOUCH_HOVER * self._cell.half(self._prop)]), on)
        self._on, self._over = (self._cell.posture(self._name, joints, shut) for joints in (on, over))
