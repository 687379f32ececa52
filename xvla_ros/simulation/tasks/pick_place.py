# SPDX-License-Identifier: Apache-2.0
"""Pick up the named cube and put it in the bowl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xvla_ros.simulation.parts import CUBES
from xvla_ros.simulation.tasks.plan import ExpertPlan, Leg
from xvla_ros.simulation.tasks.task import Cell, Expert, Goal, Layout, Task, spoken, within
from xvla_ros.simulation.world import CONTROL_PERIOD, World
from xvla_ros.types import Floats

HEIGHTS = (0.0, 0.022, 0.044, 0.066)  # m over a lying cube at which postures are sought, for a straight way
HOVER = HEIGHTS[-1]  # m over a lying cube's middle from where the hand goes down, and to where it lifts
MOVED = 0.002  # m by which a cube must move for its postures to be sought anew
SAFE = 0.035  # m over it from which the open fingers clear the cube
FUNNEL = 0.003, 0.1  # m beside the cube, and m more for each m above it, from where the way leads straight down
NEARBY = 0.04  # m beside the cube within which the execution is steady
STEADY = 0.25  # share of the usual noise
BETWEEN = 0.009, 0.014  # m by which a cube may be off the fingers' middle, along and across the hand, to be grasped
HELD = 0.012  # m over the table that only a held cube can be
WIDE = 0.8  # share of the opening that is wide enough to go down with
EMPTY = 0.12  # share of the opening below which nothing is between the fingers
DOWN = 0.012  # m over the grasp below which the hand has come down
SLOW = 0.7  # of the usual speed, for going down beside a cube


class Grasper:
    """The way of one hand to a grasp on one cube.

    Attributes:
        closed: gripper position that squeezes.
    """

    def __init__(self, cell: Cell, hand: str, prop: str) -> None:
        """Solve for the postures at the cube, unless it is in the air."""
        self._cell, self._name, self._prop = cell, hand, prop
        self._hand = cell.hands[hand]
        self._at: Floats = np.full(3, np.inf)
        self.closed = self._hand.figures.closed
        self._line = [self._hand.home] * len(HEIGHTS)
        if not self._is_lifted():
            self._look()

    @property
    def over(self) -> Floats:
        """Joint positions [K] of the hand over the cube."""
        return self._line[-1]

    def about(self, height: float) -> Floats:
        """Return positions [J] with the open fingers ``height`` m over a grasp, everything else at home."""
        self._look()
        return self._posture(height, self._hand.figures.opened)

    def way(self, legs: Sequence[Leg]) -> ExpertPlan:
        """Return a plan from where the joints are; a gripper that holds the cube goes on squeezing it."""
        start = self._cell.positions
        if self.holds and legs[0].posture[self._hand.gripper] == self.closed:
            start[self._hand.gripper] = self.closed
        return self._cell.way(start, legs)

    @property
    def holds(self) -> bool:
        """Whether both fingers touch the cube, or it is between them in the air, where they lose touch for moments."""
        return self._cell.contacts.holds(self._name, self._prop) or (
            self._is_lifted() and self._is_between(self._cell.positions, wider=2.0)
        )

    def to_grasp(self) -> list[Leg]:
        """Return the way from wherever the hand is until the fingers are closed on the cube.

        Fingers that have begun to close beside the cube go on, wherever it is, and open again only over it, after
        they have met nothing. A policy that saw reasons to close and reasons to open would stand there with its fingers
        half closed, as a gripper's output is the mean of what it thinks possible.
        """
        self._look()
        figures = self._hand.figures
        now = self._cell.positions
        beside = self._hand.point(now[self._hand.columns], figures.around) - self._cell.place(self._prop)
        apart, opening = float(np.linalg.norm(beside[:2])), self._opening(now)
        is_down = apart < NEARBY and beside[2] < DOWN
        down = [
            Leg(self._posture(0.0, figures.opened), stop=True, speed=SLOW, noise=STEADY),
            Leg(self._posture(0.0, self.closed), stop=True, noise=0.0),
        ]
        if is_down and opening < EMPTY:
            up = now.copy()
            up[self._hand.columns] = self._posture(SAFE, self.closed)[self._hand.columns]
            up[self._hand.gripper] = self.closed
            return [Leg(up, noise=STEADY), Leg(self._posture(HOVER, figures.opened), noise=STEADY), *down]
        if self._is_between(now) or (is_down and opening < WIDE):
            now[self._hand.gripper] = self.closed
            return [Leg(now, stop=True, noise=0.0)]
        if self._is_above(now, apart, float(beside[2])):
            return down
        height = float(np.clip(beside[2], SAFE, HOVER))
        low = apart < NEARBY and beside[2] < HOVER
        return [Leg(self._posture(height, figures.opened), noise=STEADY if low else 1.0), *down]

    def _opening(self, now: Floats) -> float:
        """Return how wide the fingers are: 0 closed with nothing between them, 1 open."""
        figures = self._hand.figures
        return float((now[self._hand.gripper] - figures.closed) / (figures.opened - figures.closed))

    def _posture(self, height: float, gripper: float) -> Floats:
        """Return positions [J] with the hand ``height`` m straight over the grasp."""
        joints = np.array([np.interp(height, HEIGHTS, column) for column in np.array(self._line).T])
        return self._cell.posture(self._name, joints, gripper)

    def lifted(self) -> Leg:
        """Return the way straight up with the cube."""
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

    def _is_above(self, now: Floats, apart: float, above: float) -> bool:
        """Say whether the open hand may go straight down from ``apart`` m beside and ``above`` m over the grasp."""
        near, wider = FUNNEL
        open_enough = self._opening(now) > WIDE
        turned = np.abs(now[self._hand.columns] - self._line[0])[-1] < 0.25
        return bool(open_enough and turned and above > -0.01 and apart < near + wider * max(above, 0.0))

    def _is_between(self, now: Floats, wider: float = 1.0) -> bool:
        """Say whether the cube is where the fingers close, seen from the hand."""
        figures = self._hand.figures
        place, turn = self._hand.pose(now[self._hand.columns])
        seen = turn.T @ (self._cell.place(self._prop) - place)
        approach, jaw = np.array(figures.approach), np.array(figures.jaw)
        across = np.cross(approach, jaw)
        around, grasp = np.array(figures.around), np.array(figures.grasp)
        low, high = sorted((float(around @ jaw), float(grasp @ jaw)))
        off = seen - around
        along, beside = wider * np.array(BETWEEN)
        return bool(
            abs(off @ approach) < along and abs(off @ across) < beside and low - along < seen @ jaw < high + along
        )


CARRIED = np.array([0.0, 0.0, 0.06])  # m over the bowl's foot at which a cube's middle is let go above the bowl
HIGH = np.array([0.0, 0.0, 0.085])  # m over it through which the cube is carried there: ways between postures sag
OVER = 0.02, 0.075  # m beside the bowl's middle and m over its foot within which a held cube is let go
GENTLE = 0.3  # of the usual speed, for opening: a cube that is flicked misses the bowl
LOW = 0.04  # m: a held cube below this is lifted before it is carried
IN_BOWL = 0.045, 0.045  # m beside the bowl's middle and m over the table within which a cube lies in it
LIFTED = 0.05  # m over the table that another cube must not be
ASTRAY = 0.05  # m by which another cube may be pushed about: into the bowl is farther
BOWL_FLOOR = 0.006  # m over the table
OPENING = 0.11  # share of the way from holding a cube to wide open at which it falls
SWAY = 0.003, 0.1  # rad: range of the spread of the joints beside the way in a drawn moment
ASIDE = 0.018  # m by which a cube that is held may be off the fingers' middle, across the hand
RAISED = 0.006  # m over the usual grasp: spread of the height at which the fingers close
TWIST = 0.2  # rad: spread of the turn of a cube against the fingers that close on it
ASKEW = 0.3  # share of the grasps that meet a cube at any turn
UNDECIDED = 0.04  # m: a cube this near to both arms is not asked for


class PickPlace(Task):
    """See the module."""

    name: ClassVar[str] = "pick_place"
    done: ClassVar[str] = "in the bowl"
    time_limit: ClassVar[float] = 12.0
    grasps: ClassVar[bool] = True

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every sentence that the task may say."""
        return tuple(self._sentence(Goal(cube)) for cube in CUBES)

    def expert(self, world: World, layout: Layout) -> Expert:
        """Return the expert for the episode that ``reset`` began."""
        return PickPlaceExpert(self._cell_of(world), layout)

    def _sentence(self, goal: Goal) -> str:
        return f"put the {spoken(goal.prop)} in the bowl"

    def _goals(self, cell: Cell, props: Mapping[str, tuple[float, float, float]]) -> Sequence[Goal]:
        goals = []
        for prop in cell.world.scene.props:
            nearest, *others = sorted(cell.hands.values(), key=lambda hand: hand.distance(props[prop]))
            clear = all(hand.distance(props[prop]) - nearest.distance(props[prop]) > UNDECIDED for hand in others)
            if clear and within(nearest, props[prop], grasp=True):
                goals.append(Goal(prop))
        return goals

    def _judge(self, cell: Cell, layout: Layout) -> tuple[bool, bool]:
        prop, held = layout.goal.prop, {prop for _, prop in cell.contacts.touches()}
        done = is_in(cell.place(prop), cell.place("bowl")) and prop not in held and cell.rests(prop)
        return done, another_moved(cell, layout)


@dataclass(frozen=True, eq=False)
class _Hold:
    """How a hand holds a cube.

    Attributes:
        positions: [J], with the fingers closed on it where it lay.
        place, turn: [3] m and [3, 3] of the cube in the frame of the tool.
    """

    positions: Floats
    place: Floats
    turn: Floats


def _turned(yaw: float) -> Floats:
    """Return the rotation [3, 3] about z."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], np.float64)


class PickPlaceExpert(Expert):
    """Grasps, lifts, carries over the bowl, lets go, and goes home."""

    def __init__(self, cell: Cell, layout: Layout) -> None:
        self._cell, self._prop, self._name = cell, layout.goal.prop, layout.hand
        self._grasper = Grasper(cell, layout.hand, layout.goal.prop)
        self._hand = cell.hands[layout.hand]
        self._drop: Floats | None = None
        self._high = self._hand.home

    def plan(self, world: World) -> ExpertPlan:
        """Plan from wherever the cube and the hand are."""
        cell, grasper = self._cell, self._grasper
        cube, bowl = cell.place(self._prop), cell.place("bowl")
        beside = float(np.linalg.norm(cube[:2] - bowl[:2]))
        held = grasper.holds
        if not held and beside < IN_BOWL[0]:
            return grasper.way(self._leave(cell.positions))
        high, drop = self._over_bowl(bowl)
        carry = [Leg(drop, stop=True), *self._leave(drop)]
        if beside > IN_BOWL[0]:
            carry.insert(0, Leg(high))
        if not held:
            return grasper.way([*grasper.to_grasp(), grasper.lifted(), *carry])
        if is_over(cube, bowl):
            return grasper.way(self._leave(cell.positions))
        if cube[2] < LOW and beside > IN_BOWL[0]:
            return grasper.way([grasper.lifted(), *carry])
        return grasper.way(carry)

    def empty_until(self, plan: ExpertPlan) -> float:
        """See ``Expert.empty_until``: until the closing fingers meet the cube."""
        gripper, figures = self._hand.gripper, self._hand.figures
        if figures.holding is None or plan.start[gripper] < figures.holding:
            return plan.duration
        closing = next((i for i, leg in enumerate(plan.legs) if leg.posture[gripper] == self._grasper.closed), 0)
        begin = float(plan.ends[closing - 1]) if closing else 0.0
        return begin + (figures.opened - figures.holding) / float(plan.speeds[gripper])

    def take_hold(self, world: World, rng: np.random.Generator) -> bool:
        """See ``Expert.take_hold``: the cube is in the hand on its way, or in the bowl and the hand on its way home."""
        before = world.data.qpos.copy()
        hold = self._hold(world, rng)
        world.go_back(before)
        if hold is None:
            return False
        self._put(world, hold.positions, hold)
        if not self._grasper.holds:
            world.go_back(before)
            return False
        plan, gripper = self.plan(world), self._hand.gripper
        held, opened = hold.positions[gripper], self._hand.figures.opened
        let_go = next(i for i, leg in enumerate(plan.legs) if leg.posture[gripper] == opened)
        time = rng.random() * plan.duration
        positions = plan.at([time])[0]
        if time > plan.ends[let_go - 1] and (positions[gripper] - held) / (opened - held) > OPENING:
            world.arrange({}, self._named(positions))
            beside = np.array([*rng.uniform(-IN_BOWL[0] / 3, IN_BOWL[0] / 3, 2), BOWL_FLOOR])
            half = np.array([0.0, 0.0, self._cell.half(self._prop)])
            world.put(self._prop, self._cell.place("bowl") + beside + half, _turned(np.pi / 2))
        else:
            beside = np.exp(rng.uniform(np.log(SWAY[0]), np.log(SWAY[1]))) * rng.normal(size=len(self._hand.columns))
            positions[self._hand.columns] += beside * min(1.0, time / plan.ends[0])
            self._put(world, positions, hold)
        return True

    def _hold(self, world: World, rng: np.random.Generator) -> _Hold | None:
        """Let physics close the fingers on the cube and lift it; None where it slips out of them.

        A policy comes down beside the middle and turned. Then the cube is held by its edge, or by its corners with the
        fingers far apart. Who has only seen cubes that an expert holds takes such a cube for lost, and lets it go.
        """
        cell, hand = self._cell, self._hand
        opened = self._grasper.about(RAISED * abs(rng.normal()))
        world.arrange({}, self._named(opened))
        across = hand.pose(opened[hand.columns])[1] @ np.cross(hand.figures.approach, hand.figures.jaw)
        beside = rng.uniform(-ASIDE, ASIDE) * across * (1.0, 1.0, 0.0)
        turned = rng.uniform(-np.pi, np.pi) / 4 if rng.random() < ASKEW else TWIST * rng.normal()
        world.put(self._prop, cell.place(self._prop) + beside, _turned(cell.yaw(self._prop) + turned))
        closed = opened.copy()
        closed[hand.gripper] = self._grasper.closed
        self._drive(world, opened, Leg(closed, stop=True))
        grasped = cell.positions
        self._drive(world, closed, self._grasper.lifted())
        if not (self._grasper.holds and cell.place(self._prop)[2] > cell.half(self._prop) + HELD):
            return None
        place, turn = hand.pose(cell.positions[hand.columns])
        cube = world.data.body(self._prop)
        return _Hold(grasped, turn.T @ (cube.xpos - place), turn.T @ cube.xmat.reshape(3, 3))

    def _drive(self, world: World, start: Floats, leg: Leg) -> None:
        plan = self._cell.way(start, [leg])
        world.drive(plan.at(np.arange(0.0, plan.duration, CONTROL_PERIOD)))

    def _put(self, world: World, positions: Floats, hold: _Hold) -> None:
        """Place the hand with the cube in it."""
        positions = positions.copy()
        positions[self._hand.gripper] = hold.positions[self._hand.gripper]
        world.arrange({}, self._named(positions))
        place, turn = self._hand.pose(positions[self._hand.columns])
        world.put(self._prop, place + turn @ hold.place, turn @ hold.turn)

    def _named(self, positions: Floats) -> dict[str, float]:
        return dict(zip(self._cell.order, positions.tolist(), strict=True))

    def _over_bowl(self, bowl: Floats) -> tuple[Floats, Floats]:
        """Return the posture high over the bowl, and that in which the cube is let go."""
        if self._drop is None:
            grasp = self._hand.figures.grasp
            self._drop = self._hand.anyhow(bowl + CARRIED, grasp, near=self._grasper.over)
            self._high = self._hand.anyhow(bowl + HIGH, grasp, near=self._drop)
        closed = self._grasper.closed
        return self._cell.posture(self._name, self._high, closed), self._cell.posture(self._name, self._drop, closed)

    def _leave(self, posture: Floats) -> list[Leg]:
        """Open in a posture, then home."""
        opened = posture.copy()
        opened[self._hand.gripper] = self._hand.figures.opened
        return [Leg(opened, stop=True, speed=GENTLE, noise=0.0), Leg(self._cell.home, stop=True)]


def is_over(place: Floats, bowl: Floats) -> bool:
    """Say whether a cube whose middle is at ``place`` falls into the bowl that stands on ``bowl``: a picture shows it.

    A posture of the joints would not do: pictures hardly tell an arm that has come to it from one that is about to.
    """
    beside, above = OVER
    return bool(np.linalg.norm(place[:2] - bowl[:2]) < beside and place[2] - bowl[2] < above)


def another_moved(cell: Cell, layout: Layout) -> bool:
    """Say whether a cube that the instruction does not name is lifted, or is far from where it lay."""
    others = layout.props.keys() - {"bowl", layout.goal.prop}
    places = [(cell.place(prop), layout.props[prop]) for prop in others]
    return any(now[2] > LIFTED or np.linalg.norm(now[:2] - before[:2]) > ASTRAY for now, before in places)


def is_in(place: Floats, bowl: Floats) -> bool:
    """Say whether a cube whose middle is at ``place`` lies in the bowl that stands on ``bowl``."""
    beside, above = IN_BOWL
    return bool(np.linalg.norm(place[:2] - bowl[:2]) < beside and place[2] < above)
