# SPDX-License-Identifier: Apache-2.0
"""Pick up the named cube with the arm that is near it, and hand it to the other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from xvla_ros.simulation.parts import CUBES
from xvla_ros.simulation.tasks.pick_place import Grasper, another_moved
from xvla_ros.simulation.tasks.plan import ExpertPlan, Leg
from xvla_ros.simulation.tasks.task import Cell, Expert, Goal, Layout, Task, spoken, within
from xvla_ros.simulation.world import World
from xvla_ros.types import Floats

MEETING = np.array([0.25, 0.0, 0.16])  # where the cube changes hands, both hands level and pointing at it
BACK = 0.07  # m along its fingers that a hand stays behind the cube, before it takes it and after it has given it
ARRIVED = 0.03  # rad of the joint furthest from a posture in which an arm is there
MOVED = 0.003  # m by which the presented cube must move for the taker's postures to be sought anew
ON_LINE = 0.013  # m beside the cube within which the open hand may advance on it
LOW = 0.04  # m over the table below which a held cube is lifted before it is carried
ALOFT = 0.08  # m over the table that a cube must be, to be handed over
UNDECIDED = 0.10  # m: a cube about as near to both arms is not asked for: it must be plain which arm gives it
SLOW = 0.6  # of the usual speed, near the other hand
STEADY = 0.1  # share of the usual noise there
OPEN = 0.85  # share of the opening from which a cube is free


class Handover(Task):
    """See the module."""

    name: ClassVar[str] = "handover"
    done: ClassVar[str] = "handed over"
    time_limit: ClassVar[float] = 16.0

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every sentence that the task may say."""
        return tuple(self._sentence(Goal(cube, hand)) for cube in CUBES for hand in self._names)

    def expert(self, world: World, layout: Layout) -> Expert:
        """Return the expert for the episode that ``reset`` began."""
        return HandoverExpert(self._cell_of(world), layout)

    def _sentence(self, goal: Goal) -> str:
        return f"hand the {spoken(goal.prop)} to the {goal.hand} arm"

    def _goals(self, cell: Cell, props: Mapping[str, tuple[float, float, float]]) -> Sequence[Goal]:
        goals = []
        for prop in cell.world.scene.props:
            giver, taker = sorted(cell.hands, key=lambda name: cell.hands[name].distance(props[prop]))
            gap = cell.hands[taker].distance(props[prop]) - cell.hands[giver].distance(props[prop])
            if gap > UNDECIDED and within(cell.hands[giver], props[prop], grasp=True):
                goals.append(Goal(prop, taker))
        return goals

    def _judge(self, cell: Cell, layout: Layout) -> tuple[bool, bool]:
        goal, touching = layout.goal, cell.contacts.touches()
        given = cell.contacts.holds(goal.hand, goal.prop) and cell.place(goal.prop)[2] > ALOFT
        alone = not any((hand, goal.prop) in touching for hand in cell.hands if hand != goal.hand)
        return given and alone, another_moved(cell, layout)


class HandoverExpert(Expert):
    """One hand grasps, lifts and presents; the other comes, closes; the first opens and draws back."""

    def __init__(self, cell: Cell, layout: Layout) -> None:
        self._cell, self._prop, self._taker = cell, layout.goal.prop, layout.goal.hand
        (self._giver,) = (name for name in cell.hands if name != self._taker)
        self._grasper = Grasper(cell, self._giver, self._prop)
        giving, taking = cell.hands[self._giver], cell.hands[self._taker]
        self._giving, self._taking = giving, taking
        level, up = _towards(giving.shoulder), np.array([0.0, 0.0, -1.0])
        across = np.cross(level, up)
        self._present = giving.facing(MEETING, giving.figures.grasp, level, (across, -across))
        self._free = giving.facing(MEETING, giving.figures.around, level, (across, -across), self._present)
        behind = MEETING - BACK * level
        self._behind = giving.facing(behind, giving.figures.around, level, (across, -across), self._free)
        self._at: Floats = np.full(3, np.inf)
        self._take = self._wait = taking.home
        self._level = _towards(taking.shoulder)
        self._look(MEETING)

    def plan(self, world: World) -> ExpertPlan:
        """Plan from wherever the cube and the hands are."""
        cell, grasper = self._cell, self._grasper
        low = cell.place(self._prop)[2] < ALOFT
        taken = cell.contacts.holds(self._taker, self._prop) and not low
        if taken:
            return self._squeezing(self._part(cell.positions), taker=True)
        if not grasper.holds:
            return grasper.way([*grasper.to_grasp(), grasper.lifted(), *self._meet()])
        now = cell.positions
        if self._is_presented(now):
            self._look(cell.place(self._prop))
            return self._squeezing(self._advance(now), taker=False)
        lift = [grasper.lifted()] if cell.place(self._prop)[2] < LOW else []
        return grasper.way([*lift, *self._meet()])

    def _look(self, place: Floats) -> None:
        """Solve for the postures that take the cube from ``place``, if that has changed."""
        if float(np.linalg.norm(place - self._at)) < MOVED:
            return
        taking, level, up = self._taking, self._level, np.array([0.0, 0.0, -1.0])
        self._at = place
        self._take = taking.facing(place, taking.figures.around, level, (up,))
        self._wait = taking.facing(place - BACK * level, taking.figures.around, level, (up,), self._take)

    def _meet(self) -> list[Leg]:
        """Let the giver present the cube while the taker comes near; then let the taker take it."""
        together = self._both((self._present, self._grasper.closed), (self._wait, self._opened))
        return [Leg(together, stop=True, noise=0.5), *self._advance(None)]

    def _advance(self, now: Floats | None) -> list[Leg]:
        """Let the open hand go around the cube, along its fingers, and close."""
        held = self._present, self._grasper.closed
        wait = Leg(self._both(held, (self._wait, self._opened)), stop=True, noise=STEADY)
        take = Leg(self._both(held, (self._take, self._opened)), stop=True, speed=SLOW, noise=STEADY / 2)
        close = Leg(self._both(held, (self._take, self._closed)), stop=True, noise=0.0)
        if now is not None and self._is_around(now):
            here = now.copy()
            here[self._taking.gripper] = self._closed
            return [Leg(here, stop=True, noise=0.0), *self._part(here)]
        legs = [take, close, *self._part(close.posture)]
        return legs if now is not None and self._is_on_line(now) else [wait, *legs]

    def _part(self, now: Floats) -> list[Leg]:
        """Part, from a posture [J] in which both hold: the giver opens, moves clear of the cube and draws back."""
        figures = self._giving.figures
        at = now[self._taking.columns]
        opened = now.copy()
        opened[self._giving.gripper], opened[self._taking.gripper] = figures.opened, self._closed
        clear = self._both((self._free, figures.opened), (at, self._closed))
        back = self._both((self._behind, figures.opened), (at, self._closed))
        away = [Leg(clear, speed=SLOW, noise=0.0), Leg(back, stop=True, noise=0.0)]
        share = (now[self._giving.gripper] - figures.closed) / (figures.opened - figures.closed)
        if share < OPEN:
            return [Leg(opened, stop=True, noise=0.0), *away]
        drawn = float(np.abs(now[self._giving.columns] - self._free).max()) < 2 * ARRIVED
        return away[1:] if drawn or self._is_behind(now) else away

    def _squeezing(self, legs: Sequence[Leg], *, taker: bool) -> ExpertPlan:
        """Return a plan in which closed grippers are commanded closed from the first instant on."""
        start = self._cell.positions
        grippers = [self._taking.gripper] if taker else [self._giving.gripper]
        for gripper in grippers:
            start[gripper] = legs[0].posture[gripper]
        return self._cell.way(start, legs)

    def _both(self, giving: tuple[Floats, float], taking: tuple[Floats, float]) -> Floats:
        return self._cell.postures({self._giver: giving, self._taker: taking})

    @property
    def _opened(self) -> float:
        return self._taking.figures.opened

    @property
    def _closed(self) -> float:
        return self._taking.figures.closed

    def _is_presented(self, now: Floats) -> bool:
        return float(np.abs(now[self._giving.columns] - self._present).max()) < ARRIVED

    def _is_behind(self, now: Floats) -> bool:
        seen = self._giving.point(now[self._giving.columns], self._giving.figures.around) - self._cell.place(self._prop)
        return bool(float(-seen @ _towards(self._giving.shoulder)) > 0.02)

    def _is_on_line(self, now: Floats) -> bool:
        """Say whether the taker may advance: the cube is straight before its open hand."""
        beside = self._beside(now)
        along = float(beside @ self._level)
        apart = float(np.linalg.norm(beside - along * self._level))
        return -BACK - 0.02 < along < 0.01 and apart < ON_LINE

    def _is_around(self, now: Floats) -> bool:
        beside = self._beside(now)
        along = float(beside @ self._level)
        return abs(along) < 0.008 and float(np.linalg.norm(beside - along * self._level)) < 2 * ON_LINE

    def _beside(self, now: Floats) -> Floats:
        """Return the way from the cube to the point of the taker's hand that should be there."""
        return self._taking.point(now[self._taking.columns], self._taking.figures.around) - self._cell.place(self._prop)


def _towards(shoulder: Floats) -> Floats:
    """Return the horizontal direction from a shoulder to where the hands meet."""
    way = np.array([*(MEETING[:2] - shoulder), 0.0], np.float64)
    return way / np.linalg.norm(way)
