# SPDX-License-Identifier: Apache-2.0
"""What scenes are made of: links, joints, servos and shapes of arms; the room, its lamp, a table, props, fixed cameras.

Lengths in m, angles in rad, masses in kg, forces in N and N·m. A joint's origin is written as in a URDF. In a scene
z is up, the table top at z = 0, and the arms face +x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Vec3 = tuple[float, float, float]
Colour = tuple[float, float, float, float]

# MuJoCo's contacts give way in proportion to force over mass: at its defaults, fingers that press with 40 N sink 12 mm
# into a cube of 20 g. These sink in by 0.6 mm.
HARD_CONTACT: dict[str, Any] = {"solref": [0.005, 1.0], "solimp": [0.95, 0.99, 0.001, 0.5, 2.0]}
GRIP: dict[str, Any] = HARD_CONTACT | {"friction": [1.5, 0.02, 0.0005], "condim": 4}

MOTOR: Colour = (0.13, 0.13, 0.15, 1.0)
PAD: Colour = (0.80, 0.80, 0.84, 1.0)
LENS: Colour = (0.05, 0.35, 0.15, 1.0)


@dataclass(frozen=True)
class JointFigures:
    """Origin (xyz, fixed-axis rpy) of a joint in its parent link, its limits (rad; m where it slides) and its axis."""

    xyz: Vec3
    rpy: Vec3
    lower: float
    upper: float
    axis: Vec3 = (0.0, 0.0, 1.0)
    slides: bool = False


@dataclass(frozen=True)
class Servo:
    """A position servo and the joint it drives.

    Attributes:
        kp: stiffness, N·m/rad (N/m where the joint slides).
        kv: damping of the servo, N·m·s/rad.
        force: greatest torque or force.
        inertia: of the rotor, seen through the gears; it keeps a stiff spring stable at milliseconds.
        damping, friction: of the joint.
    """

    kp: float
    kv: float
    force: float
    inertia: float
    damping: float = 0.0
    friction: float = 0.0


@dataclass(frozen=True)
class Contact:
    """MuJoCo's collision bits: two geoms touch where one's ``contype`` meets the other's ``conaffinity``."""

    contype: int
    conaffinity: int


class ArmParts:
    """Adds the parts of one arm, which share a name prefix, a colour and collision bits.

    ``weightless`` takes gravity off its links: what the integral term or the feed-forward of a driver does.
    """

    def __init__(
        self, spec: mujoco.MjSpec, prefix: str, colour: Colour, contact: Contact, *, weightless: bool = False
    ) -> None:
        self.spec, self.prefix = spec, prefix
        self._colour, self._contact = colour, contact
        self._gravcomp = 1.0 if weightless else 0.0

    def frame(self, parent: Any, name: str, xyz: Vec3, rpy: Vec3 = (0.0, 0.0, 0.0)) -> Any:
        """Add a link fixed to its parent, and return it."""
        return parent.add_body(name=self.prefix + name, pos=xyz, quat=quaternion(rpy))

    def link(self, parent: Any, joint: str, figures: JointFigures, servo: Servo) -> Any:
        """Add the child link ``<prefix><joint>_link`` of a joint and its servo, both named ``<prefix><joint>``."""
        body = self.passive_link(parent, joint, figures, servo)
        name, limits = self.prefix + joint, [figures.lower, figures.upper]
        self.spec.add_actuator(
            name=name,
            target=name,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            gaintype=mujoco.mjtGain.mjGAIN_FIXED,
            gainprm=[servo.kp] + [0.0] * 9,
            biastype=mujoco.mjtBias.mjBIAS_AFFINE,
            biasprm=[0.0, -servo.kp, -servo.kv] + [0.0] * 7,
            ctrllimited=True,
            ctrlrange=limits,
            forcelimited=True,
            forcerange=[-servo.force, servo.force],
        )
        return body

    def passive_link(self, parent: Any, joint: str, figures: JointFigures, servo: Servo) -> Any:
        """Add the child link of a joint without a drive; it has the inertia, damping and friction of ``servo``."""
        name = self.prefix + joint
        body = parent.add_body(
            name=f"{name}_link", pos=figures.xyz, quat=quaternion(figures.rpy), gravcomp=self._gravcomp
        )
        body.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE if figures.slides else mujoco.mjtJoint.mjJNT_HINGE,
            axis=figures.axis,
            range=[figures.lower, figures.upper],
            limited=True,
            armature=servo.inertia,
            damping=servo.damping,
            frictionloss=servo.friction,
        )
        return body

    def couple(self, joint: str, driver: str, ratio: float = 1.0) -> None:
        """Make ``joint`` follow ``driver``: position = ``ratio`` times the driver's."""
        self.spec.add_equality(
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1=self.prefix + joint,
            name2=self.prefix + driver,
            data=[0.0, ratio] + [0.0] * (mujoco.mjNEQDATA - 2),
            solref=[0.005, 1.0],
        )

    def box(
        self, body: Any, xyz: Vec3, half: Vec3, *, mass: float, rgba: Colour | None = None, grips: bool = False
    ) -> None:
        """Add a box of half sizes ``half`` about ``xyz``, along its link's axes; one that grips has much friction."""
        grip = GRIP if grips else {}
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=xyz, size=half, mass=mass, **self._finish(rgba), **grip)

    def beam(
        self,
        body: Any,
        start: Vec3,
        end: Vec3,
        half: float,
        *,
        mass: float,
        wide: float | None = None,
        rgba: Colour | None = None,
        grips: bool = False,
    ) -> None:
        """Add a box from ``start`` to ``end``, ``2·half`` thick, ``2·wide`` broad; one that grips has much friction."""
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            **_along(np.array(start), np.array(end), half, wide or half),
            mass=mass,
            **self._finish(rgba),
            **(GRIP if grips else {}),
        )

    def rod(self, body: Any, start: Vec3, end: Vec3, radius: float, *, mass: float, rgba: Colour | None = None) -> None:
        """Add a cylinder from ``start`` to ``end``."""
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            fromto=[*start, *end],
            size=[radius, 0.0, 0.0],
            mass=mass,
            **self._finish(rgba),
        )

    def tool(self, body: Any, xyz: Vec3, rpy: Vec3 = (0.0, 0.0, 0.0), name: str = "tool") -> None:
        """Add the site ``<prefix><name>``: a frame on the link to which the policy's poses or the figures refer."""
        body.add_site(name=self.prefix + name, pos=xyz, quat=quaternion(rpy), size=[0.004] * 3, group=5)

    def camera(self, body: Any, name: str, xyz: Vec3, turn: NDArray[np.float64], fovy: float) -> Vec3:
        """Add the camera ``<prefix><name>`` at ``xyz``, looking along −z of ``turn`` with y up; ``fovy`` in degrees.

        Return the middle of its case, which lies behind it.
        """
        x, y, z = (float(v) for v in np.array(xyz) + turn @ np.array([0.0, 0.0, 0.012]))
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[x, y, z],
            quat=quat_of(turn),
            size=[0.012, 0.008, 0.006],
            mass=0.01,
            **self._finish(LENS),
        )
        body.add_camera(name=self.prefix + name, pos=xyz, quat=quat_of(turn), fovy=fovy)
        return x, y, z

    def _finish(self, rgba: Colour | None) -> dict[str, Any]:
        return {
            "rgba": rgba or self._colour,
            "contype": self._contact.contype,
            "conaffinity": self._contact.conaffinity,
        }


def quaternion(rpy: Vec3) -> list[float]:
    """Return the quaternion wxyz of fixed-axis roll, pitch, yaw in rad, as in a URDF."""
    quat = np.zeros(4)
    mujoco.mju_euler2Quat(quat, np.array(rpy), "XYZ")
    return [float(v) for v in quat]


def rotation(rpy: Vec3) -> NDArray[np.float64]:
    """Return the matrix of fixed-axis roll, pitch, yaw in rad."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.array(quaternion(rpy)))
    return matrix.reshape(3, 3)


def quat_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quaternion wxyz of a rotation matrix."""
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, matrix.flatten())
    return quat


def looking(direction: Vec3, up: Vec3) -> NDArray[np.float64]:
    """Return the rotation of a camera that looks along ``direction``, its image's up as near to ``up`` as possible."""
    backward = -np.array(direction)
    backward /= np.linalg.norm(backward)
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    return np.column_stack([right, np.cross(backward, right), backward])


def _along(start: NDArray[np.float64], end: NDArray[np.float64], half: float, wide: float) -> dict[str, Any]:
    """Return position, orientation and half sizes of a box between two points, broad along y or z, or nearly so."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    z = axis / length
    # Beams along z are broad along y, all others broad along z.
    broad = np.array([0.0, 1.0, 0.0]) if abs(z[2]) > 0.5 else np.array([0.0, 0.0, 1.0])
    x = np.cross(broad, z)
    x /= np.linalg.norm(x)
    matrix = np.column_stack([x, np.cross(z, x), z])
    return {"pos": (start + end) / 2, "quat": quat_of(matrix), "size": [half, wide, length / 2]}


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
