# SPDX-License-Identifier: Apache-2.0
"""Moments of a task without an episode: a layout, arms somewhere on their way, and the expert's plan from there.

The expert has no memory: what it wants is a function of where everything is. So any posture over any layout is as good
as one that was reached by simulating, and a picture of it goes with a plan for each thing that may be asked for.

Where a task grasps, that is not all: fingers that come down beside a cube rest on it, and a cube between them slips and
turns. So part of its moments come from a few seconds of physics, in which the arm does what the expert wants, badly,
or what a policy wants, which meets its own mistakes there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import MessageError, SimulationError
from xvla_ros.observation.images import points_in_view, view_of
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.tasks.catalogue import load_task
from xvla_ros.simulation.tasks.hands import OutOfReachError, hands_of
from xvla_ros.simulation.tasks.plan import ExpertPlan
from xvla_ros.simulation.tasks.task import Expert, Layout
from xvla_ros.simulation.world import CONTROL_PERIOD, World
from xvla_ros.types import Floats

Picture = NDArray[np.uint8]
Follow = Callable[[Floats], Floats]
"""Times [T], s from now, to positions of the joints [T, J], rad or m."""
Player = Callable[[Mapping[str, Picture], Floats, str, int], Follow]
"""Pictures by slot, positions [J], an instruction and a seed, to what a policy wants the arms to do."""


@dataclass(eq=False)
class DrawnScene:
    """One robot before one task.

    Args:
        profile: of the robot.
        task: of its scene.
        variation: of light, colours and cameras, 1 as in demonstrations.
        pixels: width and height of the pictures.

    Raises:
        SimulationError, KinematicsError: naming what is missing.
    """

    profile: Profile
    task: str
    variation: float = 1.0
    pixels: int = 256
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.profile)
        self._task = load_task(self.profile, self.task, variation=self.variation)
        self._hands = hands_of(self.world)
        blank = np.zeros((self.pixels, self.pixels, 3), np.uint8)
        for slot in self.profile.cameras.slots:
            try:
                view_of(blank, self.profile.cameras.by_name[slot])
            except MessageError as error:
                raise SimulationError(f"{self.profile.name}: camera {slot}: {error}") from error

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every sentence that the task may say."""
        return self._task.instructions

    @property
    def positions(self) -> NDArray[np.float64]:
        """[J], rad or m, in the profile's ``policy_order``."""
        return np.array(list(self.world.positions().values()))

    def pictures(self, slots: tuple[str, ...]) -> dict[str, Picture]:
        """Draw the present state as a policy sees it, turned and cropped by the profile: slot → uint8 [H, W, 3] RGB.

        Raises:
            SimulationError: naming what to install.
        """
        cameras = self.profile.cameras.by_name
        return {slot: view_of(self.world.render(slot, self.pixels, self.pixels), cameras[slot]) for slot in slots}

    def place_of(self, prop: str) -> tuple[Floats, Floats]:
        """Return where the middle of a prop is: [3] m in the scene's frame, and [3] in the first view."""
        place: Floats = self.world.data.body(prop).xpos.copy()
        return place, self.in_view(self.profile.cameras.slots[0], place[None])[0]

    def in_view(self, slot: str, places: Floats) -> Floats:
        """Return where places [K, 3] of the scene are in the view of a slot, which is cut from a square picture.

        [K, 3]: u and v, −1 … 1 from left to right and from top to bottom, and depth, m.
        """
        model, camera = self.world.model, self.world.data.camera(slot)
        # MuJoCo's cameras look along −z, x to the right, y up
        x, y, z = ((places - camera.xpos) @ camera.xmat.reshape(3, 3)).T
        depth = -z
        half = np.tan(np.radians(model.cam_fovy[model.camera(slot).id]) / 2)
        half *= np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        shown = points_in_view(
            np.stack([x / half, -y / half], axis=-1), (self.pixels, self.pixels), self.profile.cameras.by_name[slot]
        )
        return np.column_stack([shown, depth])

    def close(self) -> None:
        """Free what drawing holds."""
        self.world.close()


BEGINNING = 0.3  # share of the moments far from a grasp that have the arms as at the start: only the words decide there
BEYOND = 0.45  # share of the moments not played in which the hand has grasped, where a task grasps
PLAYED = 0.6  # share of the layouts whose moments are played, where a task grasps
BY_POLICY = 0.5  # share of these layouts that a policy plays, where there is one
HELD = 0.35  # share of the played layouts that begin with the cube in the hand
ABOUT = 0.45  # share of them that begin with the hand about to grasp it; the others begin as an episode does
PAUSE = 0.1, 0.6  # s between two played moments
BIAS = 0.004, 0.06  # rad: range from which the spread of the arm's error there is drawn, by its logarithm
KEPT = 0.7  # share of these pauses after which the error is still the same
FUMBLE = 0.2  # share of these pauses in which the gripper goes anywhere
NEARING = 0.6  # of a grasping task's other moments, the share in which the hand is about to grasp: the hardest part
LAST = 1.2  # s before the fingers meet the cube from which such moments are drawn
ASKEW = 0.25  # share of them in which it is turned by up to an eighth against the cube, as by a policy that saw it so
MISSED = 0.1  # share of the others that go on although nothing was grasped
ELSEWHERE = 0.2  # share of the moments on the way that come from what another instruction asks for
LEAST, MOST = 0.005, 0.3  # rad: range from which the spread of the joints beside the way is drawn, by its logarithm
SHRINK = 0.5  # factor on that spread where fingertips would be below the table
DEEP = -0.002  # m: the lowest that a fingertip may be
TRIES = 20  # layouts until something can be asked for


@dataclass(frozen=True)
class Asked:
    """An instruction, and the expert's plan that follows it from a moment on.

    Attributes:
        instruction: in words.
        plan: of the expert.
        place: [3] m, in the scene's frame: the middle of the named prop.
        seen: [3], the same in the first view, as of ``DrawnScene.in_view``.
    """

    instruction: str
    plan: ExpertPlan
    place: Floats
    seen: Floats


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
    """Draws moments of one robot and task; see ``DrawnScene``.

    Args:
        player: moves the arms in part of what is played; None: only the expert, with errors.
    """

    player: Player | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._start = self.positions
        self._limits = JointLimits.of(self.profile)
        self._grippers = np.zeros(len(self._start), np.bool_)
        self._grippers[[hand.gripper for hand in self._hands.values()]] = True

    @property
    def is_played(self) -> bool:
        """Whether physics and a player have a part in what is drawn."""
        return self._task.grasps

    def draw(self, rng: np.random.Generator, asked: int, *, pictures: bool = True) -> list[Moment]:
        """Return moments of one layout, with ``asked`` instructions in all.

        Each moment has one instruction; a moment with empty hands that are far from grasping has as many as possible.

        Args:
            rng: decides; the same state of it gives the same moments.
            asked: how many instructions.
            pictures: whether to draw them; they take most of the time, beside the expert's inverse kinematics.

        Raises:
            SimulationError: the expert reaches nothing, or naming what to install.
        """
        playing = self._task.grasps and rng.random() < PLAYED
        experts = self._experts(rng, 1 if playing else asked)
        props = experts[0][0].props
        made = self._played(rng, experts[0], asked, pictures) if playing else []
        asked -= len(made)
        while asked > 0:
            self._put(self._start)
            self.world.arrange(props)
            chosen = experts[:1]
            if not (self._task.grasps and self._grasp(rng, experts[0])):
                chosen = experts[:asked]
                if rng.random() >= BEGINNING:
                    self._set_out(rng, chosen)
            made.append(self._moment(chosen, pictures))
            asked -= len(chosen)
        return made

    def _experts(self, rng: np.random.Generator, asked: int) -> list[tuple[Layout, Expert]]:
        """Return experts for up to ``asked`` variants of one layout, all of which they can reach."""
        for _ in range(TRIES):
            self._task.reset(self.world, rng)
            self._start = self.positions
            found: list[tuple[Layout, Expert]] = []
            for layout in self._task.variants:
                with suppress(OutOfReachError):
                    expert = self._task.expert(self.world, layout)
                    expert.plan(self.world)
                    found.append((layout, expert))
                if len(found) == asked:
                    break
            if found:
                return found
        raise SimulationError(f"task {self.task!r}: in {TRIES} layouts the expert reaches no object; move the regions")

    def _moment(self, experts: list[tuple[Layout, Expert]], pictures: bool) -> Moment:
        return self._seen(tuple(self._asked(layout, expert.plan(self.world)) for layout, expert in experts), pictures)

    def _seen(self, asked: tuple[Asked, ...], pictures: bool) -> Moment:
        return Moment(self.pictures(self.profile.cameras.slots if pictures else ()), self.positions, asked)

    def _played(
        self, rng: np.random.Generator, chosen: tuple[Layout, Expert], count: int, pictures: bool
    ) -> list[Moment]:
        """Return up to ``count`` moments of an arm that follows the expert with an error, or a policy."""
        layout, expert = chosen
        player = self.player if pictures and self.player is not None and rng.random() < BY_POLICY else None
        begin = rng.random()
        if not (begin < HELD and expert.take_hold(self.world, rng)) and begin < HELD + ABOUT:
            self._approach(rng, chosen)
        spread = _by_logarithm(rng, *BIAS)
        astray: Floats = np.zeros(len(self._start))
        made: list[Moment] = []
        with suppress(OutOfReachError):  # it was knocked away: nothing more can be shown
            plan = expert.plan(self.world)
            for number in range(count):
                if number == 0 or rng.random() >= KEPT:
                    astray = self._beside(rng, spread)
                if player is None:
                    self._drive(rng, plan.at, astray, rng.uniform(*PAUSE))
                else:
                    images = made[-1].images if made else self.pictures(self.profile.cameras.slots)
                    follow = player(images, self.positions, layout.instruction, int(rng.integers(2**32)))
                    self._drive(rng, follow, None, rng.uniform(*PAUSE))
                plan = expert.plan(self.world)
                made.append(self._seen((self._asked(layout, plan),), pictures))
        return made

    def _drive(self, rng: np.random.Generator, follow: Follow, astray: Floats | None, seconds: float) -> None:
        """Let the arm follow a way: exactly, or beside it by ``astray`` and at times with the gripper anywhere."""
        lower, upper = self._limits.lower, self._limits.upper
        wanted = follow(np.arange(0.0, seconds, CONTROL_PERIOD, np.float64))
        if astray is not None:
            fumbled = self._grippers & (rng.random() < FUMBLE)
            anywhere = rng.uniform(lower, upper)
            wanted = np.where(fumbled, anywhere, wanted + astray)
        self.world.drive(np.clip(wanted, lower, upper))

    def _grasp(self, rng: np.random.Generator, chosen: tuple[Layout, Expert]) -> bool:
        """Move the arms, by chance, to after a grasp or shortly before it; return False where they stay."""
        if rng.random() < BEYOND and chosen[1].take_hold(self.world, rng):
            return True
        if rng.random() >= NEARING:
            return False
        self._approach(rng, chosen)
        self._lead_astray(rng)
        return True

    def _approach(self, rng: np.random.Generator, chosen: tuple[Layout, Expert]) -> None:
        """Move the arms to where the hand is about to grasp, at times turned against the cube."""
        layout, expert = chosen
        plan = expert.plan(self.world)
        until = expert.empty_until(plan)
        there = plan.at([until - rng.random() * min(LAST, until)])[0]
        if rng.random() < ASKEW:
            there[self._hands[layout.hand].columns[-1]] += rng.uniform(-np.pi, np.pi) / 4
        self._put(np.clip(there, self._limits.lower, self._limits.upper))

    def _set_out(self, rng: np.random.Generator, experts: list[tuple[Layout, Expert]]) -> None:
        """Move the arms to somewhere on their way, and beside it."""
        if len(experts) > 1 and rng.random() < ELSEWHERE:
            self._go(experts[1][1], 1.0)
        self._go(experts[0][1], rng.random(), empty=rng.random() >= MISSED)
        self._lead_astray(rng)

    def _asked(self, layout: Layout, plan: ExpertPlan) -> Asked:
        return Asked(layout.instruction, plan, *self.place_of(layout.goal.prop))

    def _go(self, expert: Expert, share: float, *, empty: bool = True) -> None:
        """Move the arms along a share of the way; only if not ``empty`` also where the hand holds something."""
        plan = expert.plan(self.world)
        self._put(plan.at([share * (expert.empty_until(plan) if empty else plan.duration)])[0])

    def _beside(self, rng: np.random.Generator, spread: float) -> Floats:
        """Draw errors [J] of the arms, none of the grippers."""
        return spread * rng.normal(size=len(self._start)) * ~self._grippers

    def _put(self, positions: Floats) -> None:
        order = self.profile.joints.policy_order
        self.world.arrange({}, dict(zip(order, positions.tolist(), strict=True)))

    def _lead_astray(self, rng: np.random.Generator) -> None:
        """Move the arms beside the way, but not into the table; grippers stay as they are."""
        here = self.positions
        beside = self._beside(rng, _by_logarithm(rng, LEAST, MOST))
        while True:
            there = np.clip(here + beside, self._limits.lower, self._limits.upper)
            heights = [hand.point(there[hand.columns], hand.figures.tip)[2] for hand in self._hands.values()]
            if min(heights) > DEEP or np.abs(beside).max() < LEAST:
                break
            beside *= SHRINK
        self._put(there)


def _by_logarithm(rng: np.random.Generator, least: float, most: float) -> float:
    """Draw a number between two, its logarithm uniform."""
    return float(np.exp(rng.uniform(np.log(least), np.log(most))))
