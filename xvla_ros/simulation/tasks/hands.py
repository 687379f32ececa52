# SPDX-License-Identifier: Apache-2.0
"""What a scripted expert must know of an arm: its kinematics, where its fingers hold and what they point at.

The figures of each scene's arms are a table; a new arm is a new entry. Lengths in m, angles in rad, vectors in the
frame of the tool's ``tip_link``, places in that of the scene (z up, the table top at z = 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import XvlaError
from xvla_ros.robots.family import BASE_LINK, TIP_LINK, DrawnArm, arm_named
from xvla_ros.robots.kinematics import Chain, InverseKinematics, Poses, RobotDescription
from xvla_ros.simulation.world import World
from xvla_ros.types import Floats

Vec3 = tuple[float, float, float]

ROLLS = 12  # turns about the approach axis that are tried where the roll does not matter
REACHED = 0.002  # m
TURNED = 0.12  # rad: an arm of five joints reaches most orientations only nearly
FLIPS = (0.0, np.pi / 2, np.pi, -np.pi / 2)  # turns of a cube that look alike


@dataclass(frozen=True)
class HandFigures:
    """An arm with its hand.

    Attributes:
        name: what an instruction calls it; empty for the only one.
        urdf, base_link, tip_link: its chain.
        joints: the scene's names of the chain's joints, base first.
        base: body of the scene that stands where ``base_link`` does.
        root: body of the scene that carries the whole arm and nothing else.
        shoulder: xyz in ``base_link`` of the first joint, from which reach is measured.
        pivot: xy in the scene, relative to the shoulder, from which the hand leans outward.
        fingers: bodies of the scene that hold.
        gripper: joint that opens; ``opened`` for a cube to fit in, ``closed`` to squeeze it, ``shut`` when empty.
        approach, jaw: directions in which the fingers point, and in which they open.
        tip: the point that touches when the fingers are shut.
        grasp: where the middle of a cube is when the fingers hold it,
        around: and where it should be before they close.
        lean: (distance, angle) between which the hand leans outward from straight down, by the distance from the
            pivot over the table.
        reach: least and greatest distance from the shoulder over the table for touching, and
        grasp_reach: for grasping.
        holding: gripper position with a cube between the fingers, measured in the simulator; None where it was not.
        area: corners (x, y), (x, y) of the rectangle of the scene outside of which nothing is reached.
    """

    name: str
    urdf: str
    base_link: str
    tip_link: str
    joints: tuple[str, ...]
    base: str
    root: str
    shoulder: Vec3
    pivot: tuple[float, float]
    fingers: tuple[str, str]
    gripper: str
    opened: float
    closed: float
    shut: float
    approach: Vec3
    jaw: Vec3
    tip: Vec3
    grasp: Vec3
    around: Vec3
    lean: tuple[tuple[float, float], ...]
    reach: tuple[float, float]
    grasp_reach: tuple[float, float]
    holding: float | None = None
    area: tuple[tuple[float, float], tuple[float, float]] = ((-9.0, -9.0), (9.0, 9.0))


_SO101_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
_SO101 = HandFigures(
    name="",
    urdf="so101.urdf",
    base_link="base_link",
    tip_link="gripper_frame_link",
    joints=_SO101_JOINTS,
    base="base",
    root="base",
    shoulder=(0.0388, 0.0, 0.1166),
    pivot=(0.0, 0.0),
    fingers=("wrist_roll_link", "gripper_link"),
    gripper="gripper",
    opened=0.8,
    closed=-0.1,
    shut=-0.1,
    approach=(0.0, 0.0, 1.0),
    jaw=(1.0, 0.0, 0.0),
    tip=(0.004, 0.0, 0.006),
    grasp=(-0.013, 0.0, -0.005),
    around=(-0.031, 0.0, -0.005),
    lean=((0.20, 0.0), (0.34, 0.7)),
    reach=(0.16, 0.33),
    grasp_reach=(0.16, 0.27),
    holding=0.156,
)


def _of_pair(side: str) -> HandFigures:
    return replace(
        _SO101,
        name=side,
        urdf="so101_pair.urdf",
        base_link=f"{side}_base_link",
        tip_link=f"{side}_gripper_frame_link",
        joints=tuple(f"{side}_{joint}" for joint in _SO101_JOINTS),
        base=f"{side}_base",
        root=f"{side}_base",
        fingers=(f"{side}_wrist_roll_link", f"{side}_gripper_link"),
        gripper=f"{side}_gripper",
    )


_WIDOWX = HandFigures(
    name="",
    urdf="wx250s.urdf",
    base_link="wx250s/base_link",
    tip_link="wx250s/ee_gripper_link",
    joints=("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
    base="base",
    root="base",
    shoulder=(0.0, 0.0, 0.11),
    pivot=(0.0, 0.0),
    fingers=("gripper_link", "right_finger_link"),
    gripper="gripper",
    opened=0.037,
    closed=0.015,
    shut=0.015,
    approach=(1.0, 0.0, 0.0),
    jaw=(0.0, 1.0, 0.0),
    tip=(0.0114, 0.0, 0.0),
    grasp=(-0.001, 0.0, 0.0),
    around=(-0.001, 0.0, 0.0),
    lean=((0.0, 0.0),),
    reach=(0.16, 0.40),
    grasp_reach=(0.16, 0.38),
)


def _of_g1(side: str, letter: str, sign: float) -> HandFigures:
    return HandFigures(
        name=side,
        urdf="agibot_g1.urdf",
        base_link="arm_base_link",
        tip_link=f"arm_{letter}_end_link",
        joints=tuple(f"{side}_joint{number}" for number in range(1, 8)),
        base="arm_base",
        root=f"{side}_shoulder",
        shoulder=(0.0, sign * 0.21, 0.0),
        # The elbows point outward: the hands come from the sides, and lean accordingly.
        pivot=(0.40, sign * 0.27),
        fingers=(f"{side}_gripper_link", f"{side}_other_finger_link"),
        gripper=f"{side}_gripper",
        opened=0.5,
        closed=0.0,
        shut=0.0,
        approach=(0.0, 0.0, 1.0),
        jaw=(1.0, 0.0, 0.0),
        tip=(0.0, 0.0, 0.158),
        grasp=(0.0, 0.0, 0.143),
        around=(0.0, 0.0, 0.143),
        lean=((0.0, 0.85),),
        reach=(0.30, 0.62),
        grasp_reach=(0.30, 0.62),
        area=((0.56, -0.18 if sign > 0 else -0.20), (0.70, 0.20 if sign > 0 else 0.18)),
    )


HANDS: dict[str, tuple[HandFigures, ...]] = {
    "so101_bimanual": (_of_pair("left"), _of_pair("right")),
    # With the fingers of the pair, 5 of 8 recorded episodes of this arm succeeded, with these 8.
    "so101": (replace(_SO101, opened=0.7, around=(-0.026, 0.0, -0.005)),),
    "widowx": (_WIDOWX,),
    "agibot": (_of_g1("left", "l", 1.0), _of_g1("right", "r", -1.0)),
}


def hands_named(robot: str) -> tuple[HandFigures, ...]:
    """Return the arms of the scene called ``robot``."""
    arm = arm_named(robot)
    return HANDS[robot] if arm is None else (_of_family(arm),)


def _of_family(arm: DrawnArm) -> HandFigures:
    near, far = arm.reach
    return HandFigures(
        name="",
        urdf=f"{arm.name}.urdf",
        base_link=BASE_LINK,
        tip_link=TIP_LINK,
        joints=tuple(joint.name for joint in arm.joints),
        base="base",
        root="base",
        shoulder=(0.0, 0.0, arm.shoulder[1]),
        pivot=(0.0, 0.0),
        fingers=(f"{arm.fingers[0].name}_link", f"{arm.fingers[1].name}_link"),
        gripper=arm.fingers[0].name,
        opened=arm.opened,
        closed=arm.shut,
        shut=arm.shut,
        approach=(0.0, 0.0, 1.0),
        jaw=(0.0, 1.0, 0.0),
        tip=(0.0, 0.0, arm.tip),
        grasp=(0.0, 0.0, 0.0),
        around=(0.0, 0.0, 0.0),
        lean=((near, 0.0), (far, arm.lean)),
        reach=(near - 0.01, far + 0.01),
        grasp_reach=(near - 0.01, far + 0.01),
    )


class OutOfReachError(XvlaError, ValueError):
    """No joint positions bring the hand to where it should be; the message says where that is."""


class Hand:
    """One arm of a world, and where its joints must be to hold or touch something.

    Attributes:
        figures: of the arm.
        columns: int [K], the indices of its joints in the profile's ``policy_order``; ``gripper`` that of its gripper.
        home: [K] posture from which solutions are sought.
    """

    def __init__(self, world: World, figures: HandFigures) -> None:
        """Read the arm's URDF.

        Raises:
            KinematicsError: Pinocchio is not installed, or the URDF does not fit.
        """
        order = world.profile.joints.policy_order
        self.figures = figures
        self.columns = np.array([order.index(joint) for joint in figures.joints], np.intp)
        self.gripper = order.index(figures.gripper)
        self.home = np.array([world.scene.home[joint] for joint in figures.joints])
        chain = Chain(RobotDescription.from_file(figures.urdf), figures.base_link, figures.tip_link)
        limits = [world.profile.joints.by_name[joint] for joint in figures.joints]
        self._chain = chain
        self._inverse = InverseKinematics(
            chain,
            lower=[joint.lower for joint in limits],
            upper=[joint.upper for joint in limits],
            home=self.home,
            approach=figures.approach,
        )
        base = world.data.body(figures.base)
        self._place, self._turn = base.xpos.copy(), base.xmat.reshape(3, 3).copy()
        self._shoulder: Floats = (self._place + self._turn @ np.array(figures.shoulder))[:2]
        self._pivot = self._shoulder + np.array(figures.pivot)
        self._own = _axes(np.array(figures.approach), np.array(figures.jaw))

    @property
    def shoulder(self) -> Floats:
        """Where the arm begins, xy in the scene."""
        return self._shoulder

    def distance(self, place: ArrayLike) -> float:
        """Return how far ``place`` is from the shoulder, seen from above."""
        return float(np.linalg.norm(np.asarray(place, np.float64)[:2] - self._shoulder))

    def reaches(self, place: ArrayLike, *, grasp: bool = False) -> bool:
        """Say whether ``place`` is near enough to be touched, or grasped."""
        near, far = self.figures.grasp_reach if grasp else self.figures.reach
        over_table = np.asarray(place, np.float64)[:2]
        low, high = self.figures.area
        return near <= self.distance(place) <= far and bool(np.all((low <= over_table) & (over_table <= high)))

    def pose(self, joints: Floats) -> tuple[Floats, Floats]:
        """Return position and rotation of ``tip_link`` in the scene for the arm's joint positions [K]."""
        tip = self._chain.poses(joints)
        return self._place + self._turn @ tip.positions, self._turn @ tip.rotations

    def point(self, joints: Floats, offset: Vec3) -> Floats:
        """Return where a point of the hand is in the scene for the arm's joint positions [K]."""
        place, turn = self.pose(joints)
        return place + turn @ np.array(offset, np.float64)

    def approach_to(self, place: Floats) -> Floats:
        """Return the direction in which the hand should point at ``place``: down, more outward the further it is."""
        outward = place[:2] - self._pivot
        distance = float(np.linalg.norm(outward))
        reaches, angles = zip(*self.figures.lean, strict=True)
        angle = float(np.interp(distance, reaches, angles))
        return np.array([*(np.sin(angle) * outward / max(distance, 1e-6)), -np.cos(angle)])

    def touching(self, place: Floats, near: Floats | None = None) -> Floats:
        """Return joint positions [K] that bring the shut fingertips to ``place``, with the hand leaning as it should.

        Raises:
            OutOfReachError: naming the place.
        """
        return self.anyhow(place, self.figures.tip, near)

    def grasping(self, place: Floats, yaw: float, offset: Vec3, approach: Floats, near: Floats | None = None) -> Floats:
        """Return joint positions [K] that bring the hand's point ``offset`` to ``place``, the jaw along a cube's faces.

        Args:
            place: of the cube's middle.
            yaw: of the cube.
            offset: ``figures.around`` or ``figures.grasp``.
            approach: where the fingers point.
            near: posture to stay close to.

        Raises:
            OutOfReachError: naming the place.
        """
        return self.at(place, offset, approach, yaw + np.array(FLIPS), near)

    def anyhow(self, place: Floats, offset: Vec3, near: Floats | None = None) -> Floats:
        """Return joint positions [K] that bring a point of the hand to ``place``, leaning as it should, at any roll.

        Raises:
            OutOfReachError: naming the place.
        """
        rolls = 2 * np.pi * np.arange(ROLLS) / ROLLS
        return self.at(place, offset, self.approach_to(place), rolls, near)

    def at(self, place: Floats, offset: Vec3, approach: Floats, rolls: Floats, near: Floats | None = None) -> Floats:
        """Return joint positions [K] for a point of the hand at ``place``, pointing along ``approach``.

        Args:
            rolls: directions over the table in which the jaw may open; the nearest posture wins.

        Raises:
            OutOfReachError: naming the place.
        """
        jaws = [np.array([np.cos(roll), np.sin(roll), 0.0]) for roll in rolls]
        return self.facing(place, offset, approach, jaws, near)

    def facing(
        self, place: Floats, offset: Vec3, approach: Floats, jaws: Sequence[Floats], near: Floats | None = None
    ) -> Floats:
        """Return joint positions [K] for a point of the hand at ``place``, pointing along ``approach``.

        Args:
            jaws: directions in which the jaw may open; the nearest posture wins.

        Raises:
            OutOfReachError: naming the place.
        """
        start = self.home if near is None else near
        found = [self._solve(place, offset, approach, jaw, start) for jaw in jaws]
        good = [joints for joints in found if joints is not None]
        if not good:
            raise OutOfReachError(
                f"no posture brings the {self.figures.name} hand to {np.round(place, 3).tolist()} m, pointing along "
                f"{np.round(approach, 2).tolist()}"
            )
        return min(good, key=lambda joints: float(np.abs(joints - start).max()))

    def _solve(self, place: Floats, offset: Vec3, approach: Floats, jaw: Floats, start: Floats) -> Floats | None:
        turn = _axes(approach, jaw) @ self._own.T
        tip = place - turn @ np.array(offset)
        target = Poses(self._turn.T @ (tip - self._place), self._turn.T @ turn)
        solution = self._inverse.solve(target, start)
        if solution.position_error > REACHED or solution.rotation_error > TURNED:
            return None
        return solution.positions


def _axes(approach: Floats, jaw: Floats) -> Floats:
    """Return the rotation whose first two columns are ``approach`` and the part of ``jaw`` at a right angle to it."""
    along = approach / np.linalg.norm(approach)
    across = jaw - along * (along @ jaw)
    across /= np.linalg.norm(across)
    return np.column_stack([along, across, np.cross(along, across)])


def hands_of(world: World) -> dict[str, Hand]:
    """Return the arms of a world by the names used in instructions; only for scenes with tasks.

    Raises:
        KinematicsError: Pinocchio is not installed, or a URDF does not fit.
    """
    return {figures.name: Hand(world, figures) for figures in hands_named(world.scene.robot)}


def bodies_below(model: Any, root: str) -> NDArray[np.intp]:
    """Return the numbers of the bodies that move with ``root``, itself included."""
    start = model.body(root).id
    below = {start}
    for number in range(start + 1, model.nbody):  # MuJoCo numbers parents before children
        if int(model.body_parentid[number]) in below:
            below.add(number)
    return np.array(sorted(below), np.intp)
