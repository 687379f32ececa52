"""The scenes: one builder for every robot that can be simulated, looked up by the robot's name.

A builder names its joints and actuators as the profile's policy order does, and its cameras as the profile's slots.
Frames: z up, the table top at z = 0, the arms facing +x. Lengths in m, angles in rad.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from xvla_ros.simulation import so101

Colour = tuple[float, float, float, float]

CUBE_HALF = 0.014
CUBES: dict[str, Colour] = {
    "red_cube": (0.85, 0.15, 0.13, 1.0),
    "green_cube": (0.16, 0.62, 0.25, 1.0),
    "blue_cube": (0.15, 0.32, 0.85, 1.0),
}
BOWL: Colour = (0.96, 0.93, 0.84, 1.0)
WOOD: Colour = (0.74, 0.62, 0.47, 1.0)
FLOOR: Colour = (0.40, 0.43, 0.47, 1.0)
WALL: Colour = (0.78, 0.82, 0.86, 1.0)
AMBER: Colour = (0.95, 0.60, 0.10, 1.0)
TEAL: Colour = (0.10, 0.58, 0.62, 1.0)

# Arms meet the table, the props and each other, never their own links, whose boxes overlap at the joints.
PROP_CONTACT = so101.Contact(contype=1, conaffinity=7)
LEFT_CONTACT = so101.Contact(contype=2, conaffinity=5)
RIGHT_CONTACT = so101.Contact(contype=4, conaffinity=3)


class UnknownSceneError(LookupError):
    """There is no scene for a robot; the message lists those that exist."""


@dataclass(frozen=True)
class Scene:
    """A compiled scene and what a world must know to start it.

    Attributes:
        robot: the robot's name.
        model: MuJoCo's compiled model.
        home: joint name → angle in rad at the start of an episode.
        props: names of the free bodies that ``layout`` places.
        layout: random generator → prop → (x, y, yaw) on the table.
    """

    robot: str
    model: Any
    home: Mapping[str, float]
    props: tuple[str, ...]
    layout: Callable[[np.random.Generator], Mapping[str, tuple[float, float, float]]]


_BUILDERS: dict[str, Callable[[float], Scene]] = {}


def scene(robot: str) -> Callable[[Callable[[float], Scene]], Callable[[float], Scene]]:
    """Registers the decorated function as the builder of ``robot``'s scene; it takes the physics step in s."""

    def register(builder: Callable[[float], Scene]) -> Callable[[float], Scene]:
        _BUILDERS[robot] = builder
        return builder

    return register


def scene_names() -> tuple[str, ...]:
    """Robots that can be simulated."""
    return tuple(sorted(_BUILDERS))


def build_scene(robot: str, timestep: float) -> Scene:
    """The scene of ``robot`` with a physics step of ``timestep`` s.

    Raises:
        UnknownSceneError: listing the robots that have one.
    """
    if robot not in _BUILDERS:
        raise UnknownSceneError(
            f"no simulated scene for robot {robot!r}; there is one for: {', '.join(scene_names())}; "
            "choose one of these or register a builder with xvla_ros.simulation.scenes.scene"
        )
    return _BUILDERS[robot](timestep)


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
    """Two SO-101 arms side by side on a table, three cubes and a bowl in their reach."""
    spec = new_spec(timestep)
    add_room(spec)
    so101.add_arm(spec, prefix="left_", xyz=(0.0, 0.2, 0.0), colour=AMBER, contact=LEFT_CONTACT)
    so101.add_arm(spec, prefix="right_", xyz=(0.0, -0.2, 0.0), colour=TEAL, contact=RIGHT_CONTACT)
    add_bowl(spec, (0.30, 0.0, 0.0))
    for name, colour in CUBES.items():
        add_cube(spec, name, colour)
    add_camera(spec, "front", eye=(0.80, 0.0, 0.52), target=(0.13, 0.0, 0.075), fovy=43.0)
    home = {f"{side}_{joint}": angle for side in ("left", "right") for joint, angle in SO101_READY.items()}
    return Scene("so101_bimanual", spec.compile(), home, tuple(CUBES), scatter_cubes)


def scatter_cubes(rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    """Cubes within reach of an arm, clear of the bowl and of each other by at least 6 cm."""
    taken = [np.array([0.30, 0.0])]
    layout = {}
    for name in CUBES:
        spot = _clear_spot(rng, taken)
        taken.append(spot)
        layout[name] = (float(spot[0]), float(spot[1]), float(rng.uniform(0.0, pi / 2)))
    return layout


def _clear_spot(rng: np.random.Generator, taken: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    while True:
        spot = rng.uniform((0.20, -0.26), (0.34, 0.26))
        clearances = [float(np.linalg.norm(spot - other)) for other in taken]
        if clearances[0] > 0.10 and min(clearances) > 0.06:
            return spot


def new_spec(timestep: float) -> mujoco.MjSpec:
    """An empty model with our integrator, visual settings and no shadows."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # With the default cone a held object slips by millimetres a second.
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    # Smoothed edges (4 samples) would take 2.8 times as long on a software renderer.
    spec.visual.quality.offsamples = 0
    # Clipping planes are multiples of the extent, which the wide floor would otherwise set: keep the hands in view.
    spec.stat.extent = 1.0
    spec.visual.map.znear = 0.01
    spec.visual.map.zfar = 20.0
    spec.visual.headlight.ambient = [0.38, 0.38, 0.38]
    spec.visual.headlight.diffuse = [0.28, 0.28, 0.28]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]
    return spec


def add_room(spec: mujoco.MjSpec) -> None:
    """A table in a room of four walls, and a lamp that casts no shadow.

    Walls, because MuJoCo's sky takes as long to draw as all the rest.
    """
    world = spec.worldbody
    world.add_light(
        pos=[0.5, 0.3, 1.6],
        dir=[-0.25, -0.2, -1.0],
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        castshadow=False,
        diffuse=[0.45, 0.45, 0.43],
        specular=[0.05, 0.05, 0.05],
    )
    _add_fixed_box(world, "table", (0.16, 0.0, -0.02), (0.30, 0.44, 0.02), WOOD)
    _add_fixed_box(world, "floor", (0.0, 0.0, -0.72), (3.0, 3.0, 0.02), FLOOR)
    for name, x, y in (("back", -3.0, 0.0), ("front", 3.0, 0.0), ("left", 0.0, 3.0), ("right", 0.0, -3.0)):
        half = (0.02, 3.0, 2.0) if y == 0.0 else (3.0, 0.02, 2.0)
        _add_fixed_box(world, f"{name}_wall", (x, y, 1.3), half, WALL)


def add_cube(spec: mujoco.MjSpec, name: str, colour: Colour) -> None:
    """A free cube of 28 mm and 20 g; the layout places it."""
    body = spec.worldbody.add_body(name=name, pos=[0.25, 0.0, CUBE_HALF])
    body.add_freejoint()
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF] * 3,
        mass=0.02,
        rgba=colour,
        friction=[1.0, 0.02, 0.0005],
        condim=4,
        contype=PROP_CONTACT.contype,
        conaffinity=PROP_CONTACT.conaffinity,
        **so101.HARD_CONTACT,
    )


def add_bowl(spec: mujoco.MjSpec, xyz: tuple[float, float, float], radius: float = 0.055, sides: int = 12) -> None:
    """A fixed bowl: a disc and a ring of leaning boards."""
    body = spec.worldbody.add_body(name="bowl", pos=xyz)
    finish: dict[str, Any] = {
        "rgba": BOWL,
        "contype": PROP_CONTACT.contype,
        "conaffinity": PROP_CONTACT.conaffinity,
    }
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[radius * 0.8, 0.003, 0.0], pos=[0, 0, 0.003], **finish)
    for side in range(sides):
        angle = 2 * pi * side / sides
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[radius * 0.9 * cos(angle), radius * 0.9 * sin(angle), 0.016],
            quat=so101.quaternion((0.0, 0.45, angle)),
            size=[0.0025, radius * 0.27, 0.016],
            **finish,
        )


def add_camera(
    spec: mujoco.MjSpec,
    name: str,
    *,
    eye: tuple[float, float, float],
    target: tuple[float, float, float],
    fovy: float,
) -> None:
    """A fixed camera at ``eye`` that looks at ``target`` with z up; ``fovy`` in degrees."""
    backward = np.array(eye) - np.array(target)
    backward /= np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(backward, right), backward]).flatten())
    spec.worldbody.add_camera(name=name, pos=eye, quat=quat, fovy=fovy)


def _add_fixed_box(
    world: Any, name: str, xyz: tuple[float, float, float], half: tuple[float, float, float], rgba: Colour
) -> None:
    world.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=xyz,
        size=half,
        rgba=rgba,
        contype=PROP_CONTACT.contype,
        conaffinity=PROP_CONTACT.conaffinity,
    )
