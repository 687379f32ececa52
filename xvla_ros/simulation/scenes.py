# SPDX-License-Identifier: Apache-2.0
"""The scenes: one builder for every robot that can be simulated, looked up by the robot's name.

A builder names its joints and actuators as the profile's policy order does, and its cameras as the profile's slots.
Frames: z up, the table top at z = 0, the arms facing +x. Lengths in m, angles in rad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xvla_ros.errors import SimulationError
from xvla_ros.robots.family import DrawnArm, arm_named
from xvla_ros.simulation import agibot, so101, widowx
from xvla_ros.simulation.family import family_spec
from xvla_ros.simulation.parts import (
    LEFT_CONTACT,
    RIGHT_CONTACT,
    Colour,
    Scatter,
    Vec3,
    add_bowl,
    add_camera,
    add_cubes,
    add_room,
    new_spec,
)

AMBER: Colour = (0.95, 0.60, 0.10, 1.0)
TEAL: Colour = (0.10, 0.58, 0.62, 1.0)
GRAPHITE: Colour = (0.24, 0.25, 0.29, 1.0)


@dataclass(frozen=True)
class Scene:
    """A compiled scene and what a world must know to start it.

    Attributes:
        robot: the robot's name.
        model: MuJoCo's compiled model.
        home: joint name → angle in rad (m where it slides) at the start of an episode; coupled joints included.
        props: names of the free bodies that ``layout`` places.
        layout: random generator → prop → (x, y, yaw) on the table.
    """

    robot: str
    model: Any
    home: Mapping[str, float]
    props: tuple[str, ...]
    layout: Callable[[np.random.Generator], Mapping[str, tuple[float, float, float]]]

    @property
    def driven(self) -> tuple[str, ...]:
        """The joints that have a servo."""
        return tuple(self.model.actuator(number).name for number in range(self.model.nu))


_BUILDERS: dict[str, Callable[[float], Scene]] = {}


def scene(robot: str) -> Callable[[Callable[[float], Scene]], Callable[[float], Scene]]:
    """Register the decorated function as the builder of ``robot``'s scene; it takes the physics step in s."""

    def register(builder: Callable[[float], Scene]) -> Callable[[float], Scene]:
        _BUILDERS[robot] = builder
        return builder

    return register


def scene_names() -> tuple[str, ...]:
    """Return the robots that can be simulated."""
    return tuple(sorted(_BUILDERS))


def build_scene(robot: str, timestep: float) -> Scene:
    """Build the scene of ``robot`` with a physics step of ``timestep`` s.

    Raises:
        SimulationError: listing the robots that have one.
    """
    if (arm := arm_named(robot)) is not None:
        return _build_drawn(arm, timestep)
    if robot not in _BUILDERS:
        raise SimulationError(
            f"no simulated scene for robot {robot!r}; robots with a scene: {', '.join(scene_names())}, family_SEED; "
            "choose one of these or register a builder with xvla_ros.simulation.scenes.scene"
        )
    return _BUILDERS[robot](timestep)


def scene_for(robot: str, joints: Sequence[str], timestep: float, urdfs: Iterable[str] = ()) -> Scene:
    """Build the scene of ``robot``; where none has that name, the one that drives exactly ``joints``.

    So a profile of other units, names or topics is simulated like the robot it describes. All arms of the family share
    names of joints, so theirs is the one whose URDF is among ``urdfs``, the files that the robot's tools name.

    Raises:
        SimulationError: listing the robots that have one.
    """
    if robot not in _BUILDERS and arm_named(robot) is None:
        drawn = [arm for file in dict.fromkeys(urdfs) if (arm := arm_named(file.removesuffix(".urdf"))) is not None]
        scenes = [build_scene(name, timestep) for name in (*scene_names(), *(arm.name for arm in drawn))]
        fitting = [scene for scene in scenes if set(scene.driven) == set(joints)]
        if len(fitting) == 1:
            return fitting[0]
    return build_scene(robot, timestep)


def _build_drawn(arm: DrawnArm, timestep: float) -> Scene:
    """Build the scene of an arm of the family."""
    spec, cubes, home = family_spec(arm, timestep)
    bowl = [] if arm.bowl is None else [(*np.mean(arm.bowl, axis=0).tolist(), 0.10)]
    return Scene(arm.name, spec.compile(), home, cubes, Scatter(*arm.cubes, clear=bowl))


SO101_READY = {
    "shoulder_pan": 0.0,
    "shoulder_lift": -0.5,
    "elbow_flex": 0.45,
    "wrist_flex": 1.3,
    "wrist_roll": 0.0,
    "gripper": 0.6,
}


@scene("so101_bimanual")
def build_so101_pair(timestep: float) -> Scene:
    """Build two SO-101 arms side by side on a table, with three cubes and a bowl in their reach."""
    spec = new_spec(timestep)
    add_room(spec)
    so101.add_arm(spec, prefix="left_", xyz=(0.0, 0.2, 0.0), colour=AMBER, contact=LEFT_CONTACT)
    so101.add_arm(spec, prefix="right_", xyz=(0.0, -0.2, 0.0), colour=TEAL, contact=RIGHT_CONTACT)
    add_bowl(spec, (0.30, 0.0, 0.0))
    cubes = add_cubes(spec)
    add_camera(spec, "front", eye=(0.80, 0.0, 0.52), target=(0.13, 0.0, 0.075), fovy=43.0)
    home = {f"{side}_{joint}": angle for side in ("left", "right") for joint, angle in SO101_READY.items()}
    layout = Scatter((0.20, -0.26), (0.34, 0.26), clear=[(0.30, 0.0, 0.10)])
    return Scene("so101_bimanual", spec.compile(), home, cubes, layout)


@scene("so101")
def build_so101(timestep: float) -> Scene:
    """Build one SO-101 arm on a table, with three cubes and a bowl in its reach."""
    spec = new_spec(timestep)
    add_room(spec)
    so101.add_arm(spec, prefix="", xyz=(0.0, 0.0, 0.0), colour=AMBER, contact=LEFT_CONTACT)
    add_bowl(spec, (0.24, 0.17, 0.0))
    cubes = add_cubes(spec)
    add_camera(spec, "front", eye=(0.66, 0.0, 0.42), target=(0.15, 0.01, 0.06), fovy=43.0)
    layout = Scatter((0.18, -0.18), (0.31, 0.12), clear=[(0.24, 0.17, 0.10)])
    return Scene("so101", spec.compile(), SO101_READY, cubes, layout)


# The gripper points down from 15 cm above the table, at (0.25, 0), inside the box of the Bridge service.
WIDOWX_READY = {
    "waist": 0.0,
    "shoulder": -0.1707,
    "elbow": 0.4002,
    "forearm_roll": 0.0,
    "wrist_angle": 1.3413,
    "wrist_rotate": 0.0,
    "gripper": 0.037,
    "right_finger": 0.037,
}


@scene("widowx")
def build_widowx(timestep: float) -> Scene:
    """Build a WidowX 250s on a table, with three cubes and a bowl in its reach."""
    spec = new_spec(timestep)
    add_room(spec)
    widowx.add_arm(spec, prefix="", xyz=(0.0, 0.0, 0.0), colour=GRAPHITE, contact=LEFT_CONTACT)
    add_bowl(spec, (0.28, 0.20, 0.0))
    cubes = add_cubes(spec)
    add_camera(spec, "front", eye=(0.80, -0.30, 0.50), target=(0.17, 0.02, 0.11), fovy=44.0)
    layout = Scatter((0.20, -0.14), (0.36, 0.11), clear=[(0.28, 0.20, 0.10)])
    return Scene("widowx", spec.compile(), WIDOWX_READY, cubes, layout)


AGIBOT_TABLE = 0.75
AGIBOT_LIFT = 0.15
AGIBOT_PITCH = 0.3
AGIBOT_CUBE_HALF = 0.02


@scene("agibot")
def build_agibot(timestep: float) -> Scene:
    """Build an AgiBot G1 behind a table of 75 cm, torso lifted and leaning a little, three cubes between its hands."""
    spec = new_spec(timestep)
    add_room(spec, table=(0.70, 0.0, -0.02), half=(0.32, 0.55, 0.02), floor=-AGIBOT_TABLE)
    stand: Vec3 = (0.0, 0.0, -AGIBOT_TABLE)
    chest, parts = agibot.add_torso(
        spec, xyz=stand, lift=AGIBOT_LIFT, pitch=AGIBOT_PITCH, colour=agibot.ARM_COLOUR, contact=LEFT_CONTACT
    )
    agibot.add_head_camera(parts, chest)
    agibot.add_arm(spec, chest, prefix="left_", colour=AMBER, contact=LEFT_CONTACT)
    agibot.add_arm(spec, chest, prefix="right_", colour=TEAL, contact=RIGHT_CONTACT)
    cubes = add_cubes(spec, AGIBOT_CUBE_HALF)
    home = {
        f"{side}joint{number}": angle
        for side, angles in agibot.HOME.items()
        for number, angle in enumerate(angles, start=1)
    }
    home |= {f"{side}{finger}": 0.5 for side in agibot.HOME for finger in ("gripper", "other_finger")}
    layout = Scatter((0.50, -0.28), (0.68, 0.28), apart=0.09)
    return Scene("agibot", spec.compile(), home, cubes, layout)
