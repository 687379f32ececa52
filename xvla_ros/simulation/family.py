# SPDX-License-Identifier: Apache-2.0
"""The scenes of ``xvla_ros.robots.family``: what its arms look like, their tables, lamps and cameras, from the seed.

A camera that does not see all that the arm is to reach is drawn again; so is one where the WidowX has its own, and an
arm of the WidowX's colour. Lengths in m, angles in rad, masses in kg.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from math import cos, pi, sin, tan
from typing import Any

import mujoco
import numpy as np

from xvla_ros.errors import SimulationError
from xvla_ros.robots.family import DrawnArm, DrawnJoint
from xvla_ros.simulation.parts import (
    CUBES,
    LEFT_CONTACT,
    ArmParts,
    Colour,
    JointFigures,
    Servo,
    Vec3,
    add_bowl,
    add_camera,
    add_cubes,
    add_room,
    looking,
    new_spec,
)
from xvla_ros.types import Floats

STRONG = Servo(kp=8000.0, kv=80.0, force=60.0, inertia=0.25, damping=2.0, friction=0.2)
LIGHT = Servo(kp=4000.0, kv=30.0, force=25.0, inertia=0.08, damping=1.0, friction=0.1)
GRIP = {
    True: Servo(kp=150.0, kv=1.5, force=3.0, inertia=0.004, damping=0.05),
    False: Servo(kp=3000.0, kv=30.0, force=25.0, inertia=0.2, damping=2.0),
}  # by whether the fingers swing
SERVOS = {"pan": STRONG, "lift": STRONG, "upper_roll": STRONG, "elbow": STRONG}

WIDOWX_EYE: Vec3 = (0.80, -0.30, 0.50)
WIDOWX_COLOUR = (0.24, 0.25, 0.29)
EYES_APART = 0.25  # m of a camera from that of the WidowX, and
VIEWS_APART = 0.6  # rad between two cameras, seen from above
COLOURS_APART = 0.3  # of an arm's red, green and blue, 0 … 1, from those of the WidowX, and
SHADES_APART = 0.55  # of any surface's from those of a cube, with the greatest of the three as 1
TRIES = 1000


def family_spec(arm: DrawnArm, timestep: float) -> tuple[mujoco.MjSpec, tuple[str, ...], dict[str, float]]:
    """Return the scene of an arm, not yet compiled, the names of its cubes, and where its joints are at the start.

    Args:
        arm: whose.
        timestep: of the physics, s.

    Raises:
        SimulationError: no camera that was drawn sees what it must.
    """
    rng = np.random.default_rng([arm.seed, 2])
    spec = new_spec(timestep)
    _furnish(spec, arm, rng)
    _add_arm(spec, arm, rng)
    cubes = add_cubes(spec, arm.cube_half)
    if arm.bowl is not None:
        add_bowl(spec, (*np.mean(arm.bowl, axis=0).tolist(), 0.0))
    taken: list[float] = []
    for slot in arm.slots:
        if slot != "wrist":
            _add_fixed_camera(spec, arm, slot, taken, rng)
    home = {joint.name: at for joint, at in zip(arm.joints, arm.home, strict=True)}
    return spec, cubes, home | {finger.name: arm.opened for finger in arm.fingers}


def _furnish(spec: mujoco.MjSpec, arm: DrawnArm, rng: np.random.Generator) -> None:
    """Add a room with a table of drawn size and colours under a drawn lamp."""
    corners = np.array([*arm.cubes, *(arm.bowl or ()), arm.place[:2]])
    low = corners.min(axis=0) - rng.uniform(0.12, 0.3, 2)
    high = corners.max(axis=0) + rng.uniform(0.12, 0.3, 2)
    (x, y), (half_x, half_y) = (low + high) / 2, (high - low) / 2
    add_room(spec, table=(x, y, -0.02), half=(half_x, half_y, 0.02), floor=-float(rng.uniform(0.5, 0.9)))
    spec.geom("table").rgba = _colour(rng, 0.4, (0.35, 0.95))
    spec.geom("floor").rgba = _colour(rng, 0.35, (0.2, 0.8))
    wall = _colour(rng, 0.25, (0.4, 0.95))
    for name in ("back", "front", "left", "right"):
        spec.geom(f"{name}_wall").rgba = wall
    lamp = spec.lights[0]
    lamp.dir = [*rng.uniform(-0.6, 0.6, 2), -1.0]
    lamp.diffuse = rng.uniform(0.25, 0.6) * (1.0 + rng.uniform(-0.08, 0.08, 3))
    ambient = float(rng.uniform(0.28, 0.48))
    spec.visual.headlight.ambient = [ambient] * 3


def _colour(rng: np.random.Generator, saturation: float, brightness: tuple[float, float]) -> Colour:
    """Draw a colour whose shade is that of no cube."""
    shades = [np.array(cube[:3]) / max(cube[:3]) for cube in CUBES.values()]
    while True:
        drawn = hsv_to_rgb(rng.random(), saturation * rng.random(), rng.uniform(*brightness))
        if min(float(np.linalg.norm(np.array(drawn) / max(drawn) - shade)) for shade in shades) > SHADES_APART:
            return (*drawn, 1.0)


def _arm_colours(rng: np.random.Generator) -> tuple[Colour, Colour, Colour]:
    """Draw the colours of an arm's links, motors and fingers."""
    while True:
        links = _colour(rng, 0.9, (0.15, 0.95))
        if np.linalg.norm(np.subtract(links[:3], WIDOWX_COLOUR)) > COLOURS_APART:
            return links, _colour(rng, 0.3, (0.08, 0.5)), _colour(rng, 0.2, (0.3, 0.9))


def _add_arm(spec: mujoco.MjSpec, arm: DrawnArm, rng: np.random.Generator) -> None:
    """Add the arm on its pedestal; its names are those of its URDF, its fingers' bodies ``<joint>_link``."""
    links, motors, pads = _arm_colours(rng)
    parts = ArmParts(spec, "", links, LEFT_CONTACT, weightless=True)
    base = parts.frame(spec.worldbody, "base", arm.place, (0.0, 0.0, arm.yaw))
    thick = float(np.clip(0.09 * (arm.upper + arm.forearm), 0.02, 0.045) * rng.uniform(0.7, 1.1))
    round_links = bool(rng.random() < 0.5)
    if arm.place[2]:
        parts.box(base, (0.0, 0.0, -arm.place[2] / 2), (0.06, 0.06, arm.place[2] / 2), mass=5.0, rgba=motors)
    body, joints = base, arm.joints
    for joint, after in zip((None, *joints), (*joints, None), strict=True):
        if joint is not None:
            body = parts.link(body, joint.name, _figures(joint), SERVOS.get(joint.name, LIGHT))
            if joint.axis[2] == 0.0:
                half = np.array(joint.axis) * thick * 1.15
                parts.rod(body, _vec(-half), _vec(half), 0.7 * thick, mass=0.1, rgba=motors)
        if after is not None:
            _add_link(parts, body, after.xyz, thick * (1.3 if joint is None else 0.75), round_links)
    _add_hand(parts, body, arm, (motors, pads))


def _figures(joint: DrawnJoint, *, slides: bool = False) -> JointFigures:
    return JointFigures(joint.xyz, (0.0, 0.0, joint.turn), joint.lower, joint.upper, joint.axis, slides=slides)


def _add_link(parts: ArmParts, body: Any, end: Vec3, half: float, rounded: bool) -> None:
    """Add a link from a body's origin to the origin of the next joint, along the two sides of a right angle."""
    corner = (0.0, 0.0, end[2])
    if end[2] > 0.01:
        if rounded:
            parts.rod(body, (0.0, 0.0, 0.0), corner, half, mass=0.3)
        else:
            parts.beam(body, (0.0, 0.0, 0.0), corner, half, mass=0.3)
    if end[0] > 0.01:
        parts.beam(body, corner, end, 0.9 * half, mass=0.1)


def _add_hand(parts: ArmParts, body: Any, arm: DrawnArm, colours: tuple[Colour, Colour]) -> None:
    """Add palm and fingers, the tool's frame, and the camera of the hand where there is one."""
    motors, pads = colours
    one, other = arm.fingers
    wide = 0.05 if not arm.hinged else 0.028
    start, length = one.xyz[2], arm.finger
    parts.box(body, (0.0, 0.0, start / 2), (0.018, 0.022, start / 2), mass=0.1)
    parts.box(body, (0.0, 0.0, start - 0.006), (0.014, wide, 0.006), mass=0.05, rgba=motors)
    parts.tool(body, (0.0, 0.0, arm.tool))
    for finger, side in ((one, 1.0), (other, -1.0)):
        add = parts.link if finger is one else parts.passive_link
        link = add(body, finger.name, _figures(finger, slides=not arm.hinged), GRIP[arm.hinged])
        # Pads are 12 mm thick and meet in the middle when the gripper is shut.
        inner = -side * 0.006 if arm.hinged else 0.0
        knuckle = (0.0, inner / 2, 0.6 * length)
        parts.beam(link, (0.0, 0.0, 0.0), knuckle, 0.005, wide=0.007, mass=0.01, rgba=motors)
        parts.beam(
            link, (0.0, inner, 0.5 * length), (0.0, inner, length), 0.008, wide=0.006, mass=0.01, rgba=pads, grips=True
        )
    parts.couple(other.name, one.name)
    if "wrist" in arm.slots:
        eye, turn = (-0.075, 0.0, start - 0.03), looking((0.5, 0.0, 1.0), up=(1.0, 0.0, 0.0))
        parts.beam(body, (0.0, 0.0, start - 0.02), parts.camera(body, "wrist", eye, turn, 78.0), 0.004, mass=0.005)


def _add_fixed_camera(
    spec: mujoco.MjSpec, arm: DrawnArm, name: str, taken: list[float], rng: np.random.Generator
) -> None:
    """Add a camera that sees where cubes lie, and the fingertips above them; note its direction in ``taken``."""
    middle = np.append(np.mean(arm.cubes, axis=0), 0.05)
    (left, low), (right, high) = arm.cubes
    wanted = np.array([(x, y, z) for x in (left, right) for y in (low, high) for z in (0.0, 0.12)])
    for _ in range(TRIES):
        azimuth, elevation = rng.uniform(-1.9, 1.9), rng.uniform(0.5, 1.15)
        fovy, target = float(rng.uniform(36.0, 68.0)), middle + rng.uniform(-0.05, 0.05, 3)
        size = float(np.linalg.norm(wanted - middle, axis=1).max())
        away = size / tan(fovy * pi / 360) * rng.uniform(0.9, 1.4)
        eye = middle + away * np.array([cos(elevation) * cos(azimuth), cos(elevation) * sin(azimuth), sin(elevation)])
        alone = all(abs((azimuth - other + pi) % (2 * pi) - pi) > VIEWS_APART for other in taken)
        if alone and is_unlike_widowx(eye) and _sees(eye, target, fovy, wanted):
            taken.append(azimuth)
            add_camera(spec, name, eye=_vec(eye), target=_vec(target), fovy=fovy)
            return
    raise SimulationError(
        f"{arm.name}: of {TRIES} places for camera {name!r} none shows the region that the arm must reach"
    )


def is_unlike_widowx(eye: Floats) -> bool:
    """Say whether a fixed camera at ``eye`` [3] is not where the scene of the WidowX has its own."""
    return float(np.linalg.norm(eye - WIDOWX_EYE)) > EYES_APART


def _sees(eye: Floats, target: Floats, fovy: float, wanted: Floats) -> bool:
    """Say whether all of the places [N, 3] are in a square picture, with a twentieth of it to spare on each side."""
    turn = looking(_vec(target - eye), up=(0.0, 0.0, 1.0))
    x, y, z = ((wanted - eye) @ turn).T
    half = -z * tan(fovy * pi / 360)
    return bool((half > 0).all() and (np.abs(np.stack([x, y])) < 0.9 * half).all())


def _vec(xyz: Floats) -> Vec3:
    x, y, z = (float(each) for each in xyz)
    return x, y, z
