# SPDX-License-Identifier: Apache-2.0
"""Links, joints, servos and shapes: what the simulated arms are made of.

Lengths in m, angles in rad, masses in kg, forces in N and N·m. A joint's origin is written as in a URDF.
"""

from __future__ import annotations

from dataclasses import dataclass
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
