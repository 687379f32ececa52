# SPDX-License-Identifier: Apache-2.0
"""What a scene has besides arms: the room, its lamp, a table, props and fixed cameras.

Frames: z up, the table top at z = 0, the arms facing +x. Lengths in m, angles in rad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from xvla_ros.simulation.links import HARD_CONTACT, Colour, Contact, Vec3, looking, quat_of, quaternion

CUBE_HALF = 0.014
CUBE_MASS = 0.02
CUBES: dict[str, Colour] = {
    "red_cube": (0.85, 0.15, 0.13, 1.0),
    "green_cube": (0.16, 0.62, 0.25, 1.0),
    "blue_cube": (0.15, 0.32, 0.85, 1.0),
}
BOWL: Colour = (0.96, 0.93, 0.84, 1.0)
WOOD: Colour = (0.74, 0.62, 0.47, 1.0)
FLOOR: Colour = (0.40, 0.43, 0.47, 1.0)
WALL: Colour = (0.78, 0.82, 0.86, 1.0)

# Arms meet the table, the props and each other, never their own links, whose boxes overlap at the joints.
PROP_CONTACT = Contact(contype=1, conaffinity=7)
LEFT_CONTACT = Contact(contype=2, conaffinity=5)
RIGHT_CONTACT = Contact(contype=4, conaffinity=3)


def new_spec(timestep: float) -> mujoco.MjSpec:
    """Make an empty model with our integrator and visual settings, without shadows."""
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


def add_room(
    spec: mujoco.MjSpec, *, table: Vec3 = (0.16, 0.0, -0.02), half: Vec3 = (0.30, 0.44, 0.02), floor: float = -0.70
) -> None:
    """Add a table (its middle and half sizes) in a room of four walls, and a lamp that casts no shadow.

    There are walls because MuJoCo's sky takes as long to draw as all the rest.
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
    _add_fixed_box(world, "table", table, half, WOOD)
    _add_fixed_box(world, "floor", (0.0, 0.0, floor - 0.02), (3.0, 3.0, 0.02), FLOOR)
    for name, x, y in (("back", -3.0, 0.0), ("front", 3.0, 0.0), ("left", 0.0, 3.0), ("right", 0.0, -3.0)):
        wall = (0.02, 3.0, 2.0) if y == 0.0 else (3.0, 0.02, 2.0)
        _add_fixed_box(world, f"{name}_wall", (x, y, floor + 2.0), wall, WALL)


def add_cubes(spec: mujoco.MjSpec, half: float = CUBE_HALF) -> tuple[str, ...]:
    """Add the cubes of ``CUBES``; return their names."""
    for name, colour in CUBES.items():
        add_cube(spec, name, colour, half)
    return tuple(CUBES)


def add_cube(spec: mujoco.MjSpec, name: str, colour: Colour, half: float = CUBE_HALF) -> None:
    """Add a free cube, by default of 28 mm and 20 g; the layout places it."""
    body = spec.worldbody.add_body(name=name, pos=[0.25, 0.0, half])
    body.add_freejoint()
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[half] * 3,
        mass=CUBE_MASS * (half / CUBE_HALF) ** 3,
        rgba=colour,
        friction=[1.0, 0.02, 0.0005],
        condim=4,
        contype=PROP_CONTACT.contype,
        conaffinity=PROP_CONTACT.conaffinity,
        **HARD_CONTACT,
    )


def add_bowl(spec: mujoco.MjSpec, xyz: Vec3, radius: float = 0.055, sides: int = 12) -> None:
    """Add a fixed bowl: a disc and a ring of leaning boards."""
    body = spec.worldbody.add_body(name="bowl", pos=xyz)
    finish: dict[str, Any] = {"rgba": BOWL, "contype": PROP_CONTACT.contype, "conaffinity": PROP_CONTACT.conaffinity}
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[radius * 0.8, 0.003, 0.0], pos=[0, 0, 0.003], **finish)
    for side in range(sides):
        angle = 2 * pi * side / sides
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[radius * 0.9 * cos(angle), radius * 0.9 * sin(angle), 0.016],
            quat=quaternion((0.0, 0.45, angle)),
            size=[0.0025, radius * 0.27, 0.016],
            **finish,
        )


def add_camera(spec: mujoco.MjSpec, name: str, *, eye: Vec3, target: Vec3, fovy: float) -> None:
    """Add a fixed camera at ``eye`` that looks at ``target`` with z up; ``fovy`` in degrees."""
    x, y, z = (float(end - start) for start, end in zip(eye, target, strict=True))
    turn = quat_of(looking((x, y, z), up=(0.0, 0.0, 1.0)))
    spec.worldbody.add_camera(name=name, pos=eye, quat=turn, fovy=fovy)


@dataclass(frozen=True)
class Scatter:
    """Where cubes may lie: anywhere in a rectangle, clear of fixed things and of each other.

    Attributes:
        low, high: corners of the rectangle, xy.
        clear: points (x, y) and the distance that cubes keep from each.
        apart: distance of the middles of two cubes.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    clear: Sequence[tuple[float, float, float]] = ()
    apart: float = 0.06

    def __call__(self, rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
        """Draw a layout: cube → (x, y, yaw)."""
        taken = [(np.array(point[:2]), point[2]) for point in self.clear]
        layout = {}
        for name in CUBES:
            spot = self._clear_spot(rng, taken)
            taken.append((spot, self.apart))
            layout[name] = (float(spot[0]), float(spot[1]), float(rng.uniform(0.0, pi / 2)))
        return layout

    def _clear_spot(
        self, rng: np.random.Generator, taken: Sequence[tuple[NDArray[np.float64], float]]
    ) -> NDArray[np.float64]:
        while True:
            spot = rng.uniform(self.low, self.high)
            if all(np.linalg.norm(spot - other) > distance for other, distance in taken):
                return spot


def _add_fixed_box(world: Any, name: str, xyz: Vec3, half: Vec3, rgba: Colour) -> None:
    world.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=xyz,
        size=half,
        rgba=rgba,
        contype=PROP_CONTACT.contype,
        conaffinity=PROP_CONTACT.conaffinity,
    )
