# SPDX-License-Identifier: Apache-2.0
"""What a task is: layouts with their instructions, a judge that looks at the simulator's state, a scripted expert.

A layout says where the props lie and which of them an instruction names, drawn from a random generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SimulationError
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.tasks.hands import Hand, bodies_below, hands_named, hands_of
from xvla_ros.simulation.tasks.plan import ExpertPlan, Leg, speeds
from xvla_ros.simulation.world import World
from xvla_ros.types import Floats

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


class Contacts:
    """The contacts of one world, by the names of arms and props."""

    def __init__(self, world: World, hands: Mapping[str, Hand], props: tuple[str, ...]) -> None:
        """Find out which shape belongs to which arm or prop."""
        self._data = world.data
        self._hands, self._props = tuple(hands), props
        body_of = world.model.geom_bodyid
        self._arm_of = np.full(world.model.ngeom, -1)
        for number, hand in enumerate(hands.values()):
            self._arm_of[np.isin(body_of, bodies_below(world.model, hand.figures.root))] = number
        self._prop_of = np.full(world.model.ngeom, -1)
        for number, prop in enumerate(props):
            self._prop_of[body_of == world.model.body(prop).id] = number
        self._fingers = {
            name: [body_of == world.model.body(finger).id for finger in hand.figures.fingers]
            for name, hand in hands.items()
        }

    def touches(self) -> set[tuple[str, str]]:
        """Return (arm, prop) for every arm that touches a prop with any of its parts."""
        first, second = self._pairs()
        arm = np.maximum(self._arm_of[first], self._arm_of[second])
        prop = np.maximum(self._prop_of[first], self._prop_of[second])
        both = (arm >= 0) & (prop >= 0)
        return {(self._hands[a], self._props[p]) for a, p in zip(arm[both], prop[both], strict=True)}

    def holds(self, hand: str, prop: str) -> bool:
        """Say whether both fingers of a hand touch a prop."""
        first, second = self._pairs()
        number = self._props.index(prop)
        of_prop = (self._prop_of[first] == number) | (self._prop_of[second] == number)
        first, second = first[of_prop], second[of_prop]
        return all(bool((finger[first] | finger[second]).any()) for finger in self._fingers[hand])

    def _pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        contact = self._data.contact
        return contact.geom1, contact.geom2


START_SPREAD = 0.06  # rad by which each joint of an arm may start beside home

STILL = 0.02  # m/s along each axis below which a prop rests


@dataclass(frozen=True)
class Outcome:
    """How an episode stands.

    Attributes:
        success: the instruction has been followed.
        wrong: something else was done, such as touching another cube.
        done: one of the two; neither is taken back.
    """

    success: bool
    wrong: bool

    @property
    def done(self) -> bool:
        """Whether the episode is decided."""
        return self.success or self.wrong


class Expert(ABC):
    """A scripted expert: it knows where everything is and what to do from any state."""

    @abstractmethod
    def plan(self, world: World) -> ExpertPlan:
        """Return the clean plan from the present state of ``world``: no memory, no noise."""

    def empty_until(self, plan: ExpertPlan) -> float:
        """Return the time in s of a plan until which the hand holds nothing, if it held nothing before."""
        return plan.duration

    def take_hold(self, world: World, rng: np.random.Generator) -> bool:
        """Bring ``world`` to a moment after the grasp; return False, with all as it was, where nothing is grasped."""
        return False


class Cell:
    """A world with the arms, props and contacts that a task asks about."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hands = hands_of(world)
        self.contacts = Contacts(world, self.hands, world.scene.props)
        self.order = world.profile.joints.policy_order
        self.grippers = tuple(hand.gripper for hand in self.hands.values())
        self.speeds = speeds(world.profile, self.grippers)
        self.home = np.array([world.scene.home[joint] for joint in self.order])

    @property
    def positions(self) -> Floats:
        """[J], rad or m, in the order of the profile's joints."""
        return np.array(list(self.world.positions().values()))

    def way(self, start: Floats, legs: Sequence[Leg]) -> ExpertPlan:
        """Return a plan from ``start`` [J], at the speeds that experts use."""
        return ExpertPlan(start, tuple(legs), self.speeds, self.grippers)

    def place(self, prop: str) -> Floats:
        """Return where the middle of a prop is."""
        middle: Floats = self.world.data.body(prop).xpos.copy()
        return middle

    def rests(self, prop: str) -> bool:
        """Say whether a free prop lies still."""
        start = self.world.model.jnt_dofadr[self.world.model.body(prop).jntadr[0]]
        return float(np.abs(self.world.data.qvel[start : start + 3]).max()) < STILL

    def yaw(self, prop: str) -> float:
        """Return how a prop is turned about z, in rad."""
        turn = self.world.data.body(prop).xmat.reshape(3, 3)
        return float(np.arctan2(turn[1, 0], turn[0, 0]))

    def half(self, prop: str) -> float:
        """Return half the height of a cube."""
        geom = self.world.model.body(prop).geomadr[0]
        return float(self.world.model.geom_size[geom][2])

    def posture(self, hand: str, joints: Floats, gripper: float) -> Floats:
        """Return positions [J] with one arm as given and everything else at home."""
        return self.postures({hand: (joints, gripper)})

    def postures(self, arms: Mapping[str, tuple[Floats, float]]) -> Floats:
        """Return positions [J] with the joints and grippers of some arms as given and everything else at home."""
        positions = self.home.copy()
        for name, (joints, gripper) in arms.items():
            positions[self.hands[name].columns] = joints
            positions[self.hands[name].gripper] = gripper
        return positions


class Task(ABC):
    """One task for one robot.

    Attributes:
        name: as commands take it.
        done: a success in a word or two.
        profile: the robot's.
        time_limit: s of simulated time after which an episode has failed.
        grasps: whether its experts say how long the hand is empty, and can bring a world to where it holds something.
        variation: how much light, colours and cameras vary: 0 not at all, 1 as for training, more beyond that.
    """

    name: ClassVar[str]
    done: ClassVar[str]
    time_limit: ClassVar[float]
    grasps: ClassVar[bool] = False

    def __init__(self, profile: Profile, robot: str, regions: Regions, *, variation: float = 1.0) -> None:
        """Make a task of ``profile``, in the scene of ``robot``."""
        self.profile, self.variation = profile, variation
        self._regions = regions
        self._names = tuple(figures.name for figures in hands_named(robot))
        self._cell: Cell | None = None
        self._layout: Layout | None = None
        self._variants: tuple[Layout, ...] = ()
        self._success = self._wrong = False

    @property
    @abstractmethod
    def instructions(self) -> tuple[str, ...]:
        """Every sentence that the task may say."""

    @abstractmethod
    def expert(self, world: World, layout: Layout) -> Expert:
        """Return the expert for the episode that ``reset`` began."""

    @abstractmethod
    def _goals(self, cell: Cell, props: Mapping[str, tuple[float, float, float]]) -> Sequence[Goal]:
        """Return what can be asked for with the props in these places."""

    @abstractmethod
    def _sentence(self, goal: Goal) -> str:
        """Return the instruction for a goal."""

    @abstractmethod
    def _judge(self, cell: Cell, layout: Layout) -> tuple[bool, bool]:
        """Say whether the present state is a success, and whether it is wrong."""

    def reset(self, world: World, rng: np.random.Generator, variant: int = 0) -> Layout:
        """Begin an episode in ``world``: props, light, colours and start postures from ``rng``; time goes on.

        Args:
            world: that of the task's robot.
            rng: decides; the same state of it gives the same episode.
            variant: which of the layout's goals; everything else is the same for all of them.

        Raises:
            SimulationError: the regions leave no room.
        """
        world.reset()
        cell = self._cell_of(world)
        props, goals = self._draw(cell, rng)
        amount = self.variation
        cubes = np.isin(world.model.geom_bodyid, [world.model.body(prop).id for prop in world.scene.props])
        world.appearance.vary(world.model, cubes, rng, amount)
        world.arrange(props, self._start(cell, rng))
        self._variants = tuple(
            Layout(
                self.name, world.profile.name, self._sentence(goal), goal,
                goal.hand or self._nearest(cell, props[goal.prop]), props, number,
            )
            for number, goal in enumerate(in_order(goals, rng))
        )  # fmt: skip
        self._layout = self._variants[variant % len(goals)]
        self._success = self._wrong = False
        return self._layout

    @property
    def variants(self) -> tuple[Layout, ...]:
        """Everything that may be asked for as the props lie since ``reset``, in its order of variants."""
        return self._variants

    def layouts_saying(self, world: World, instruction: str, seed: int) -> Iterator[tuple[int, int]]:
        """Yield, without end, seeds from ``seed`` on whose layouts allow ``instruction``, each with its variant.

        Resets ``world`` to look.

        Raises:
            ValueError: the task never says it.
        """
        if instruction not in self.instructions:
            raise ValueError(
                f"{self.name} of {self.profile.name} has no instruction {instruction!r}; expected one of: "
                + ", ".join(self.instructions)
            )
        for each in count(seed):
            for variant in range(len(self.instructions)):
                if self.reset(world, np.random.default_rng(each), variant).instruction == instruction:
                    yield each, variant
                    break

    def outcome(self, world: World) -> Outcome:
        """Return how the episode that ``reset`` began stands. Ask often: what passes between two calls is not seen.

        Raises:
            RuntimeError: no episode was begun in this world.
        """
        if self._layout is None or self._cell is None or self._cell.world is not world:
            raise RuntimeError(f"task {self.name!r} must be reset before it is judged; call reset with this world")
        if not (self._success or self._wrong):
            success, wrong = self._judge(self._cell, self._layout)
            # NumPy's bool, which comparisons give a judge, is none that a report can hold
            self._success, self._wrong = bool(success and not wrong), bool(wrong)
        return Outcome(self._success, self._wrong)

    def _cell_of(self, world: World) -> Cell:
        if self._cell is None or self._cell.world is not world:
            self._cell = Cell(world)
        return self._cell

    def _draw(
        self, cell: Cell, rng: np.random.Generator
    ) -> tuple[dict[str, tuple[float, float, float]], Sequence[Goal]]:
        for _ in range(TRIES):
            props = self._regions.draw(cell.world.scene.props, rng)
            goals = self._goals(cell, props)
            if len({goal.prop for goal in goals}) > 1:
                return props, goals
        message = f"task {self.name!r}: none of {TRIES} layouts has two cubes in reach; move the regions nearer"
        raise SimulationError(message)

    def _start(self, cell: Cell, rng: np.random.Generator) -> dict[str, float]:
        joints: dict[str, float] = {}
        for hand in cell.hands.values():
            for joint in hand.figures.joints:
                joints[joint] = cell.world.scene.home[joint] + float(rng.uniform(-START_SPREAD, START_SPREAD))
        return joints

    def _nearest(self, cell: Cell, place: tuple[float, float, float]) -> str:
        return min(cell.hands, key=lambda name: cell.hands[name].distance(place))


def spoken(prop: str) -> str:
    """Return a prop's name as in a sentence: ``red_cube`` is "red cube"."""
    return prop.replace("_", " ")


def within(hand: Hand, place: tuple[float, float, float], *, grasp: bool = False) -> bool:
    """Say whether a hand reaches a prop at (x, y, yaw)."""
    return hand.reaches(place[:2], grasp=grasp)
