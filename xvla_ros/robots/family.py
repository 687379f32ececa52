# SPDX-License-Identifier: Apache-2.0
"""A family of arms that nobody built, without end: ``family_SEED`` is a robot's name wherever one is taken.

From the seed alone come an arm of five to seven joints, its mount, its gripper, the slots of its cameras and the part
of the table that it reaches; its URDF and its profile are made of these. What it looks like, its table, lamp and the
places of its cameras are drawn by ``xvla_ros.simulation.family``. An arm that does not reach its table is drawn again;
so is one of the proportions of the WidowX, which is kept to measure what a new arm costs.

At zero an arm stands straight up, links along z, and bends about y. Lengths in m, angles in rad.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import acos, atan2, cos, hypot, pi, sin
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from xvla_ros.types import Floats

Vec3 = tuple[float, float, float]
Rectangle = tuple[tuple[float, float], tuple[float, float]]

PREFIX = "family_"
BASE_LINK, TIP_LINK, GRIPPER, OTHER_FINGER = "base_link", "tool", "gripper", "other_finger"
# Domains come again after so many seeds. Arms that are taught together, or kept from it, lie within one such round.
FIRST_DOMAIN, DOMAINS = 32, 32

WIDOWX = (0.2549, 0.2500, 0.1700, 0.1107)  # upper arm, forearm, wrist to fingertips, height of the shoulder
UNLIKE = 0.08  # least distance of an arm's proportions from these

_AXES: Mapping[str, Vec3] = {
    "pan": (0.0, 0.0, 1.0), "lift": (0.0, 1.0, 0.0), "upper_roll": (0.0, 0.0, 1.0), "elbow": (0.0, 1.0, 0.0),
    "forearm_roll": (0.0, 0.0, 1.0), "wrist": (0.0, 1.0, 0.0), "wrist_yaw": (1.0, 0.0, 0.0), "roll": (0.0, 0.0, 1.0),
}  # fmt: skip
_LIMITS: Mapping[str, tuple[float, float]] = {
    "pan": (-2.7, 2.7), "lift": (-2.0, 2.2), "upper_roll": (-2.5, 2.5), "elbow": (-0.2, 2.8),
    "forearm_roll": (-2.6, 2.6), "wrist": (-2.1, 2.4), "wrist_yaw": (-1.6, 1.6), "roll": (-3.1, 3.1),
}  # fmt: skip
_SPARE = ("upper_roll", "forearm_roll", "wrist_yaw")
_SLOTS = (("front",), ("front", "wrist"), ("front", "side"), ("front", "side", "wrist"))
MARGIN = 0.12  # rad that postures over the table keep from the limits of joints
STRETCHED = 0.95  # share of an arm's length that they use
NEAREST = 0.15  # m between the axis of the first joint and a cube
HOVER = 0.05  # m over a cube that the fingertips must be able to go
# what the expert of the touch goes: half cube heights above the place to touch, higher than another cube; m below the
# top of the cube, so that the fingers meet it
TOUCH_HOVER, TOUCH_PRESS = 3.5, 0.003
ACCELERATION, JERK = 5.0, 100.0  # rad/s², rad/s³
GRIPPER_SPEED = {True: 1.5, False: 0.1}  # by whether it is hinged, rad/s or m/s
TRIES = 5000


@dataclass(frozen=True)
class DrawnJoint:
    """A joint as in a URDF: origin in its parent link (at zero turned about z by ``turn``), axis, limits."""

    name: str
    xyz: Vec3
    axis: Vec3
    lower: float
    upper: float
    turn: float = 0.0


@dataclass(frozen=True)
class DrawnArm:
    """One arm of the family, and what it is to reach.

    Attributes:
        seed: it is the robot ``family_<seed>``.
        place, yaw: of ``base_link`` in the scene: z up, the table top at z = 0, the table before the arm towards +x.
        upper, forearm, hand: lengths of the links, the last from the wrist to the fingertips.
        bend: how far the elbow lies before the upper arm.
        shoulder: (x, z) of the joint ``lift`` in ``base_link``.
        joints: of the arm, base first, without the gripper.
        tool: z of the link ``tool`` in the last link; it points along z, and the jaw opens along its y.
        tip: z of the fingertips in ``tool``.
        finger: length of the fingers.
        hinged: whether the fingers swing; else they slide.
        shut, opened: positions of the gripper.
        speed: greatest of the joints, rad/s.
        waypoint_dt: s.
        cubes: corners (x, y), (x, y) in the scene of where the middles of cubes lie.
        bowl: the same of a bowl; None without one.
        cube_half: half the size of a cube.
        lean: by how much the hand leans outward over the cube that is furthest.
        home: of the joints, rad.
        slots: of the cameras.
    """

    seed: int
    place: Vec3
    yaw: float
    upper: float
    forearm: float
    hand: float
    bend: float
    shoulder: tuple[float, float]
    joints: tuple[DrawnJoint, ...]
    tool: float
    tip: float
    finger: float
    hinged: bool
    shut: float
    opened: float
    speed: float
    waypoint_dt: float
    cubes: Rectangle
    bowl: Rectangle | None
    cube_half: float
    lean: float
    home: tuple[float, ...]
    slots: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the robot."""
        return f"{PREFIX}{self.seed}"

    @property
    def fingers(self) -> tuple[DrawnJoint, DrawnJoint]:
        """The gripper's joint, and the one that follows it; their origins lie in the last link."""
        beside, start = 0.012 if self.hinged else 0.0, round(self.tool + self.tip - self.finger, 4)
        upper = 0.6 if self.hinged else 0.04
        one, other = ((-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)) if self.hinged else ((0.0, 1.0, 0.0), (0.0, -1.0, 0.0))
        return (
            DrawnJoint(GRIPPER, (0.0, beside, start), one, self.shut, upper),
            DrawnJoint(OTHER_FINGER, (0.0, -beside, start), other, self.shut, upper),
        )

    @property
    def unlike_widowx(self) -> float:
        """Distance from a WidowX, of what share of their sum upper arm, forearm, hand and shoulder's height are."""
        own = (hypot(self.upper, self.bend), self.forearm, self.hand, self.shoulder[1])
        return float(np.linalg.norm(_shares(own) - _shares(WIDOWX)))

    @cached_property
    def reach(self) -> tuple[float, float]:
        """Least and greatest distance over the table from the first joint's axis to a cube."""
        x, y = self.spots.T - np.array(self.place)[:2, None]
        away = np.hypot(x, y)
        return float(away.min()), float(away.max())

    @property
    def spots(self) -> Floats:
        """A grid [N, 2] of places for cubes, corners and edges included."""
        (left, low), (right, high) = self.cubes
        return np.stack(np.meshgrid(np.linspace(left, right, 5), np.linspace(low, high, 7)), axis=-1).reshape(-1, 2)

    @property
    def reaches(self) -> bool:
        """Whether the fingertips come to every place for a cube, and to over it."""
        over = max(HOVER, TOUCH_HOVER * self.cube_half)
        heights = [2 * self.cube_half + offset for offset in (-0.005, -TOUCH_PRESS, over)]  # may be too near in between
        return all(
            self.posture(x, y, height, self.leaning(x, y)) is not None
            for x, y in self.spots.tolist()
            for height in heights
        )

    def leaning(self, x: float, y: float) -> float:
        """Return the angle between straight down and the hand over a cube at (x, y)."""
        away = hypot(x - self.place[0], y - self.place[1])
        return float(np.interp(away, self.reach, (0.0, self.lean)))

    def posture(self, x: float, y: float, z: float, lean: float) -> dict[str, float] | None:
        """Return joint positions by name that bring the fingertips to a place in the scene; spare joints are at 0.

        None where it is too far or too near, or a joint does not turn so far.

        Args:
            x, y, z: the place.
            lean: angle between the hand and straight down, outward.
        """
        x, y, z = x - self.place[0], y - self.place[1], z - self.place[2]
        out = hypot(x, y) - self.hand * sin(lean) - self.shoulder[0]
        up = z + self.hand * cos(lean) - self.shoulder[1]
        upper, bent, far = hypot(self.upper, self.bend), atan2(self.bend, self.upper), hypot(out, up)
        if not abs(upper - self.forearm) < STRETCHED * far or far > STRETCHED * (upper + self.forearm):
            return None
        risen = atan2(out, up) - acos((upper**2 + far**2 - self.forearm**2) / (2 * upper * far))
        fore = atan2(out - upper * sin(risen), up - upper * cos(risen))
        found = {
            "pan": _turn(atan2(y, x) - self.yaw), "lift": _turn(risen - bent), "elbow": _turn(fore - risen + bent),
            "wrist": _turn(pi - lean - fore),
        }  # fmt: skip
        if not all(_LIMITS[name][0] + MARGIN < at < _LIMITS[name][1] - MARGIN for name, at in found.items()):
            return None
        return {joint.name: found.get(joint.name, 0.0) for joint in self.joints}


def arm_named(robot: str) -> DrawnArm | None:
    """Return the arm of a robot called ``family_SEED``, 0 … 999,999,999; None of any other name."""
    found = re.fullmatch(rf"{PREFIX}(0|[1-9]\d{{0,8}})", robot, re.ASCII)
    return draw_arm(int(found[1])) if found else None


@cache
def draw_arm(seed: int) -> DrawnArm:
    """Draw the arm of a seed, 0 … 999,999,999; the same one every time."""
    rng = np.random.default_rng([seed, 1])
    drawn = (_drawn(seed, rng) for _ in range(TRIES))
    arm = next((each for each in drawn if each is not None), None)
    if arm is None:
        raise RuntimeError(f"of {TRIES} arms generated for seed {seed}, none reaches its table")
    return arm


def _drawn(seed: int, rng: np.random.Generator) -> DrawnArm | None:
    """Return an arm with its table; None where it does not reach, or is too much like a WidowX."""

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    upper, bend = between(0.14, 0.34), between(0.0, 0.06)
    forearm, hand = round(upper * between(0.75, 1.3), 4), between(0.11, 0.22)
    shoulder = between(0.0, 0.05), between(0.07, 0.24)
    length, tip = between(0.045, 0.075), between(0.006, 0.014)
    wrist = round(min(between(0.3, 0.6) * hand, hand - length - 0.02), 4)
    spare = rng.permutation(_SPARE)[: rng.integers(3)].tolist()
    half, beside = (between(0.07, 0.11), between(0.10, 0.17)), between(-0.08, 0.08)
    ahead = round(between(0.5, 0.95) * (upper + forearm), 4)
    across = beside + (half[1] + 0.1) * rng.choice([-1.0, 1.0])
    hinged = bool(rng.random() < 0.4)
    arm = DrawnArm(
        seed=seed,
        place=(0.0, between(-0.1, 0.1), between(0.04, 0.2) if rng.random() < 0.5 else 0.0),
        yaw=between(-0.4, 0.4),
        upper=upper,
        forearm=forearm,
        hand=hand,
        bend=bend,
        shoulder=shoulder,
        joints=_joints(spare, shoulder, (upper, bend), forearm, wrist, between(0.3, 0.7), rng.choice([0.0, pi / 2])),
        tool=round(hand - wrist - tip, 4),
        tip=tip,
        finger=length,
        hinged=hinged,
        shut=0.0 if hinged else 0.006,
        opened=between(0.35, 0.55) if hinged else between(0.024, 0.036),
        speed=between(1.3, 2.2),
        waypoint_dt=float(rng.choice([0.1, 0.12, 0.15])),
        cubes=_about(ahead, beside, *half),
        bowl=_about(ahead, across, 0.04, 0.01) if rng.random() < 0.6 else None,
        cube_half=between(0.012, 0.018),
        lean=between(0.0, 0.5),
        home=(),
        slots=_SLOTS[rng.integers(len(_SLOTS))],
    )
    home = arm.posture(ahead, beside, between(0.13, 0.19), between(0.0, 0.3))
    if home is None or arm.unlike_widowx < UNLIKE or arm.reach[0] < NEAREST or not arm.reaches:
        return None
    return replace(arm, home=tuple(round(each, 4) for each in home.values()))


def _joints(
    spare: Collection[str], shoulder: tuple[float, float], upper: tuple[float, float], forearm: float, wrist: float,
    share: float, turn: float,
) -> tuple[DrawnJoint, ...]:  # fmt: skip
    """Return the joints of an arm, base first.

    Args:
        spare: which of the joints that not every arm has.
        shoulder: (x, z) of the joint ``lift``.
        upper: length of the upper arm, and how far the elbow lies before it.
        forearm: its length.
        wrist: m from the joint ``wrist`` to the joint ``roll``.
        share: of a link, where a spare joint lies in it.
        turn: of the jaw, at zero, about the last joint.
    """
    (out, up), (length, bend) = shoulder, upper
    at: dict[str, Vec3] = {"pan": (0.0, 0.0, 0.6 * up), "lift": (out, 0.0, 0.4 * up)}
    for joint, link, end, before in (
        ("upper_roll", "elbow", length, bend),
        ("forearm_roll", "wrist", forearm, 0.0),
        ("wrist_yaw", "roll", wrist, 0.0),
    ):
        first = share * end if joint in spare else 0.0
        if joint in spare:
            at[joint] = (0.0, 0.0, first)
        at[link] = (before, 0.0, end - first)
    return tuple(
        DrawnJoint(name, _rounded(xyz), _AXES[name], *_LIMITS[name], turn=float(turn) if name == "roll" else 0.0)
        for name, xyz in at.items()
    )


def _about(x: float, y: float, half_x: float, half_y: float) -> Rectangle:
    return (round(x - half_x, 4), round(y - half_y, 4)), (round(x + half_x, 4), round(y + half_y, 4))


def _rounded(xyz: Vec3) -> Vec3:
    x, y, z = (round(each, 4) for each in xyz)
    return x, y, z


def _shares(lengths: Sequence[float]) -> Floats:
    return np.array(lengths, np.float64) / sum(lengths)


def _turn(angle: float) -> float:
    """Return an angle between −π and π."""
    return float((angle + pi) % (2 * pi) - pi)


def urdf_of(file: str) -> str | None:
    """Return the URDF called ``family_SEED.urdf``; None of any other name."""
    arm = arm_named(file.removesuffix(".urdf")) if file.endswith(".urdf") else None
    return None if arm is None else _urdf(arm)


def _urdf(arm: DrawnArm) -> str:
    robot = Element("robot", name=arm.name)
    SubElement(robot, "link", name=BASE_LINK)
    link = BASE_LINK
    for joint in arm.joints:
        link = _add_joint(robot, link, joint, "revolute", arm.speed)
    fixed = SubElement(robot, "joint", name=f"{TIP_LINK}_joint", type="fixed")
    SubElement(fixed, "parent", link=link)
    SubElement(fixed, "child", link=TIP_LINK)
    SubElement(fixed, "origin", xyz=f"0 0 {arm.tool}")
    SubElement(robot, "link", name=TIP_LINK)
    for finger in arm.fingers:
        _add_joint(robot, link, finger, "revolute" if arm.hinged else "prismatic", GRIPPER_SPEED[arm.hinged])
    SubElement(robot.findall("joint")[-1], "mimic", joint=GRIPPER)
    indent(robot)
    return tostring(robot, encoding="unicode") + "\n"


def _add_joint(robot: Element, parent: str, joint: DrawnJoint, kind: str, speed: float) -> str:
    """Add a joint and its child link; return the link's name."""
    child = f"{joint.name}_link"
    added = SubElement(robot, "joint", name=joint.name, type=kind)
    SubElement(added, "parent", link=parent)
    SubElement(added, "child", link=child)
    SubElement(added, "origin", xyz=_spoken(joint.xyz), rpy=f"0 0 {joint.turn}")
    SubElement(added, "axis", xyz=_spoken(joint.axis))
    SubElement(added, "limit", lower=str(joint.lower), upper=str(joint.upper), effort="50", velocity=str(speed))
    SubElement(robot, "link", name=child)
    return child


def _spoken(xyz: Vec3) -> str:
    return " ".join(map(str, xyz))


def settings_of(robot: str) -> dict[str, Any] | None:
    """Return the settings of a robot called ``family_SEED`` as a profile file has them; None of any other name."""
    arm = arm_named(robot)
    return None if arm is None else _settings(arm)


def _settings(arm: DrawnArm) -> dict[str, Any]:
    names = [joint.name for joint in arm.joints]
    joints = {joint.name: _joint(joint, arm.speed, ACCELERATION, JERK) for joint in arm.joints}
    joints[GRIPPER] = _joint(arm.fingers[0], GRIPPER_SPEED[arm.hinged], 10 * GRIPPER_SPEED[arm.hinged], 0.0)
    near, far = _box(arm).round(4).tolist()
    return {
        "schema_version": 1,
        "namespace": f"/{arm.name}",
        "policy": {
            "checkpoint": "", "revision": "", "action_mode": "ee6d", "domain_id": FIRST_DOMAIN + arm.seed % DOMAINS,
            "waypoint_dt": arm.waypoint_dt, "first_waypoint_offset": arm.waypoint_dt, "denoising_steps": 10,
            "rot6d": "interleaved", "image_pipeline": "squash", "proprio_source": "commanded",
        },
        "cameras": {"slots": list(arm.slots), **{slot: {"topic": f"/{slot}/image_raw"} for slot in arm.slots}},
        "joints": {"policy_order": [*names, GRIPPER], **joints},
        "tools": {
            "order": ["arm"],
            "arm": {
                "urdf": f"{arm.name}.urdf", "base_link": BASE_LINK, "tip_link": TIP_LINK, "home": list(arm.home),
                "workspace_min": near, "workspace_max": far,
                "gripper": {
                    "joint": GRIPPER, "rule": "binary", "open_position": arm.opened, "closed_position": arm.shut,
                },
            },
        },
        "commands": {
            "interface": "joint_trajectory", "groups": ["arm", GRIPPER],
            "arm": {"topic": "/arm_controller/joint_trajectory", "joints": names},
            GRIPPER: {"topic": "/gripper_controller/joint_trajectory", "joints": [GRIPPER]},
        },
    }  # fmt: skip


def _joint(joint: DrawnJoint, speed: float, acceleration: float, jerk: float) -> dict[str, Any]:
    return {
        "topic": "/joint_states", "name": joint.name, "lower": joint.lower, "upper": joint.upper,
        "max_velocity": speed, "max_acceleration": acceleration, "max_jerk": jerk,
    }  # fmt: skip


def _box(arm: DrawnArm) -> Floats:
    """Return the corners [2, 3] in ``base_link`` of a box in which the tool has all of its work."""
    (left, low), (right, high) = arm.cubes
    corners = np.array([(x, y, z) for x in (left, right) for y in (low, high) for z in (-0.03, 0.35)]) - arm.place
    turn = np.array([[cos(arm.yaw), sin(arm.yaw), 0.0], [-sin(arm.yaw), cos(arm.yaw), 0.0], [0.0, 0.0, 1.0]])
    own, beside = corners @ turn.T, np.array([0.1, 0.1, 0.0])
    return np.stack([own.min(axis=0) - beside, own.max(axis=0) + beside])
