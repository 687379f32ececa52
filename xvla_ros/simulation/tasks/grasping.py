"""How an expert grasps a cube that lies on the table: over it, around it, close; each from wherever the hand is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xvla_ros.simulation.tasks.plan import ExpertPlan, Leg
from xvla_ros.simulation.tasks.task import Cell
from xvla_ros.types import Floats

HEIGHTS = (0.0, 0.022, 0.044, 0.066)  # m over a lying cube at which postures are sought, for a straight way
HOVER = HEIGHTS[-1]  # m over a lying cube's middle from where the hand goes down, and to where it lifts
MOVED = 0.002  # m by which a cube must move for its postures to be sought anew
SAFE = 0.035  # m over it from which the open fingers clear the cube
FUNNEL = 0.003, 0.1  # m beside the cube, and m more for each m above it, from where the way leads straight down
NEARBY = 0.04  # m beside the cube within which the execution is steady
STEADY = 0.25  # share of the usual noise
BETWEEN = 0.009  # m by which a cube may be off the fingers' middle, along the hand and across it, to be grasped
HELD = 0.012  # m over the table that only a held cube is
WIDE = 0.8  # share of the opening that is wide enough to go down with
SLOW = 0.7  # of the usual speed, for going down beside a cube


class Grasper:
    """The way of one hand to a grasp on one cube.

    Attributes:
        closed: gripper position that squeezes.
    """

    def __init__(self, cell: Cell, hand: str, prop: str) -> None:
        """Seeks the postures for where the cube lies, once it does."""
        self._cell, self._name, self._prop = cell, hand, prop
        self._hand = cell.hands[hand]
        self._at = np.full(3, np.inf)
        self.closed = self._hand.figures.closed
        self._line = [self._hand.home] * len(HEIGHTS)
        if not self._is_lifted():
            self._look()

    @property
    def over(self) -> Floats:
        """Joint positions [K] of the hand over the cube."""
        return self._line[-1]

    @property
    def grasped(self) -> Floats:
        """Positions [J] with the fingers closed on the cube where it lies, everything else at home."""
        self._look()
        return self._posture(0.0, self.closed)

    def way(self, legs: Sequence[Leg]) -> ExpertPlan:
        """A plan from where the joints are; a gripper that holds the cube goes on squeezing it."""
        start = self._cell.positions
        if self.holds and legs[0].posture[self._hand.gripper] == self.closed:
            start[self._hand.gripper] = self.closed
        return self._cell.way(start, legs)

    @property
    def holds(self) -> bool:
        """Whether both fingers touch the cube, or it is between them in the air, where they lose touch for moments."""
        return self._cell.contacts.holds(self._name, self._prop) or (
            self._is_lifted() and self._is_between(self._cell.positions, 2 * BETWEEN)
        )

    def to_grasp(self) -> list[Leg]:
        """From wherever the hand is until the fingers are closed on the cube."""
        self._look()
        figures = self._hand.figures
        now = self._cell.positions
        if self._is_between(now):
            now[self._hand.gripper] = self.closed
            return [Leg(now, stop=True, noise=0.0)]
        beside = self._hand.point(now[self._hand.columns], figures.around) - self._cell.place(self._prop)
        down = [
            Leg(self._posture(0.0, figures.opened), stop=True, speed=SLOW, noise=STEADY),
            Leg(self._posture(0.0, self.closed), stop=True, noise=0.0),
        ]
        if self._is_above(now, beside):
            return down
        height = float(np.clip(beside[2], SAFE, HOVER))
        low = float(np.linalg.norm(beside[:2])) < NEARBY and beside[2] < HOVER
        return [Leg(self._posture(height, figures.opened), noise=STEADY if low else 1.0), *down]

    def _posture(self, height: float, gripper: float) -> Floats:
        """With the hand straight over the grasp."""
        joints = np.array([np.interp(height, HEIGHTS, column) for column in np.array(self._line).T])
        return self._cell.posture(self._name, joints, gripper)

    def lifted(self) -> Leg:
        """Straight up with the cube."""
        return Leg(self._posture(HOVER, self.closed), noise=STEADY)

    def _look(self) -> None:
        place = self._cell.place(self._prop)
        if np.linalg.norm(place - self._at) < MOVED:
            return
        self._at, yaw = place, self._cell.yaw(self._prop)
        around = self._hand.figures.around
        approach = self._hand.approach_to(place)
        line: list[Floats] = []
        for height in reversed(HEIGHTS):
            over = place + np.array([0.0, 0.0, height])
            line.append(self._hand.grasping(over, yaw, around, approach, line[-1] if line else None))
        self._line = line[::-1]

    def _is_lifted(self) -> bool:
        return bool(self._cell.place(self._prop)[2] > self._cell.half(self._prop) + HELD)

    def _is_above(self, now: Floats, beside: Floats) -> bool:
        """Whether the open hand may go straight down, being ``beside`` the cube's middle by so much."""
        figures = self._hand.figures
        near, wider = FUNNEL
        open_enough = abs(now[self._hand.gripper] - figures.closed) > WIDE * abs(figures.opened - figures.closed)
        turned = np.abs(now[self._hand.columns] - self._line[0])[-1] < 0.25
        apart = float(np.linalg.norm(beside[:2]))
        return bool(open_enough and turned and beside[2] > -0.01 and apart < near + wider * max(beside[2], 0.0))

    def _is_between(self, now: Floats, room: float = BETWEEN) -> bool:
        """Whether the cube is where the fingers close, seen from the hand."""
        figures = self._hand.figures
        place, turn = self._hand.pose(now[self._hand.columns])
        seen = turn.T @ (self._cell.place(self._prop) - place)
        approach, jaw = np.array(figures.approach), np.array(figures.jaw)
        across = np.cross(approach, jaw)
        around, grasp = np.array(figures.around), np.array(figures.grasp)
        low, high = sorted((float(around @ jaw), float(grasp @ jaw)))
        off = seen - around
        return bool(
            abs(off @ approach) < room
            and abs(off @ across) < room
            and low - room < seen @ jaw < high + room
        )
