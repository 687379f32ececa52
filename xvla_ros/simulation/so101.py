"""An SO-101 arm of boxes, built from the figures of its URDF (SO-ARM100, Apache-2.0).

Joint origins, axes, limits and the tool frame reproduce the official kinematics (new calibration); shapes, colours
and camera mounts are ours. Lengths in m, angles in rad, masses in kg.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Vec3 = tuple[float, float, float]


@dataclass(frozen=True)
class JointFigures:
    """Origin (xyz, fixed-axis rpy) of a joint in its parent link, and its limits; the axis is the local z."""

    xyz: Vec3
    rpy: Vec3
    lower: float
    upper: float


JOINTS: dict[str, JointFigures] = {
    "shoulder_pan": JointFigures((0.0388353, 0.0, 0.0624), (pi, 0.0, -pi), -1.91986, 1.91986),
    "shoulder_lift": JointFigures((-0.0303992, -0.0182778, -0.0542), (-pi / 2, -pi / 2, 0.0), -1.74533, 1.74533),
    "elbow_flex": JointFigures((-0.11257, -0.028, 0.0), (0.0, 0.0, pi / 2), -1.69, 1.69),
    "wrist_flex": JointFigures((-0.1349, 0.0052, 0.0), (0.0, 0.0, -pi / 2), -1.65806, 1.65806),
    "wrist_roll": JointFigures((0.0, -0.0611, 0.0181), (pi / 2, 0.0486795, pi), -2.74385, 2.84121),
    "gripper": JointFigures((0.0202, 0.0188, -0.0234), (pi / 2, 0.0, 0.0), -0.174533, 1.74533),
}
TOOL_XYZ: Vec3 = (-0.0079, -0.000218, -0.0981274)
TOOL_RPY: Vec3 = (0.0, pi, 0.0)

# Position servo of the STS3215 as MuJoCo Menagerie models it: stiffness N·m/rad, damping N·m·s/rad, torque N·m.
# The rotor inertia, reflected through the gears, is what keeps so stiff a spring stable at milliseconds.
SERVO_KP = 998.0
SERVO_KV = 2.73
SERVO_TORQUE = 3.35
ROTOR_INERTIA = 0.028
JOINT_DAMPING = 0.6
JOINT_FRICTION = 0.052

# MuJoCo's contacts give way in proportion to force over mass: at its defaults, fingers that press with 40 N sink 12 mm
# into a cube of 20 g. These sink in by 0.6 mm.
HARD_CONTACT: dict[str, Any] = {"solref": [0.005, 1.0], "solimp": [0.95, 0.99, 0.001, 0.5, 2.0]}

MOTOR = (0.13, 0.13, 0.15, 1.0)
PAD = (0.80, 0.80, 0.84, 1.0)
LENS = (0.05, 0.35, 0.15, 1.0)
WRIST_CAMERA_XYZ: Vec3 = (-0.085, 0.0, 0.020)
WRIST_CAMERA_AZIMUTH = 1.0
WRIST_CAMERA_TILT = 0.64
WRIST_CAMERA_FOVY = 75.0


@dataclass(frozen=True)
class Contact:
    """MuJoCo's collision bits: two geoms touch where one's ``contype`` meets the other's ``conaffinity``."""

    contype: int
    conaffinity: int


def add_arm(
    spec: mujoco.MjSpec, *, prefix: str, xyz: Vec3, colour: tuple[float, float, float, float], contact: Contact
) -> None:
    """Adds an arm that stands on ``xyz`` and faces +x.

    Names: joints and actuators ``<prefix><joint>``, the site ``<prefix>tool`` (gripper_frame_link) and the camera
    ``<prefix>wrist``.
    """
    arm = _Arm(spec, prefix, colour, contact)
    base = spec.worldbody.add_body(name=f"{prefix}base", pos=xyz)
    arm.box(base, (0.02, 0.0, 0.008), (0.06, 0.045, 0.008), mass=0.05)
    arm.box(base, (0.032, 0.0, 0.036), (0.03, 0.024, 0.022), mass=0.10, rgba=MOTOR)

    shoulder = arm.link(base, "shoulder_pan")
    arm.box(shoulder, (-0.005, 0.0, -0.008), (0.032, 0.027, 0.014), mass=0.04)
    arm.box(shoulder, (-0.028, 0.0, -0.040), (0.019, 0.026, 0.030), mass=0.06)

    upper = arm.link(shoulder, "shoulder_lift")
    arm.box(upper, (0.0, 0.0, 0.018), (0.021, 0.019, 0.034), mass=0.055, rgba=MOTOR)
    arm.beam(upper, (-0.015, -0.002, 0.018), (-0.100, -0.010, 0.018), 0.016, mass=0.03)
    arm.box(upper, (-0.108, -0.020, 0.018), (0.019, 0.022, 0.021), mass=0.02)

    lower = arm.link(upper, "elbow_flex")
    arm.box(lower, (0.0, 0.0, 0.018), (0.019, 0.019, 0.030), mass=0.055, rgba=MOTOR)
    arm.beam(lower, (-0.015, 0.002, 0.018), (-0.115, 0.005, 0.018), 0.014, mass=0.05)

    wrist = arm.link(lower, "wrist_flex")
    arm.box(wrist, (0.0, 0.0, 0.018), (0.018, 0.018, 0.029), mass=0.05, rgba=MOTOR)
    arm.beam(wrist, (0.0, -0.015, 0.018), (0.0, -0.055, 0.018), 0.015, mass=0.03)

    hand = arm.link(wrist, "wrist_roll")
    arm.box(hand, (0.004, 0.0, -0.012), (0.030, 0.022, 0.014), mass=0.035)
    arm.box(hand, (0.022, 0.0, -0.024), (0.014, 0.021, 0.012), mass=0.03, rgba=MOTOR)
    arm.beam(hand, (-0.018, 0.0, -0.026), (-0.014, 0.0, -0.104), 0.005, mass=0.022, wide=0.010, rgba=PAD, grips=True)
    arm.mount_camera(hand)
    hand.add_site(name=f"{prefix}tool", pos=TOOL_XYZ, quat=quaternion(TOOL_RPY), size=[0.004] * 3, group=5)

    jaw = arm.link(hand, "gripper")
    arm.beam(jaw, (0.0, -0.002, 0.0188), (-0.002, -0.045, 0.0188), 0.006, mass=0.007, wide=0.012)
    arm.beam(
        jaw, (-0.002, -0.045, 0.0188), (-0.010, -0.080, 0.0188), 0.005, mass=0.005, wide=0.010, rgba=PAD, grips=True
    )


class _Arm:
    """What every part of one arm shares: its name prefix, its colour, its collision bits."""

    def __init__(self, spec: mujoco.MjSpec, prefix: str, colour: tuple[float, ...], contact: Contact) -> None:
        self._spec, self._prefix, self._colour, self._contact = spec, prefix, colour, contact

    def link(self, parent: Any, joint: str) -> Any:
        """The child link of ``joint``, with its servo."""
        figures = JOINTS[joint]
        name = self._prefix + joint
        body = parent.add_body(name=f"{name}_link", pos=figures.xyz, quat=quaternion(figures.rpy))
        limits = [figures.lower, figures.upper]
        body.add_joint(
            name=name,
            axis=[0, 0, 1],
            range=limits,
            limited=True,
            armature=ROTOR_INERTIA,
            damping=JOINT_DAMPING,
            frictionloss=JOINT_FRICTION,
        )
        self._spec.add_actuator(
            name=name,
            target=name,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            gaintype=mujoco.mjtGain.mjGAIN_FIXED,
            gainprm=[SERVO_KP] + [0.0] * 9,
            biastype=mujoco.mjtBias.mjBIAS_AFFINE,
            biasprm=[0.0, -SERVO_KP, -SERVO_KV] + [0.0] * 7,
            ctrllimited=True,
            ctrlrange=limits,
            forcelimited=True,
            forcerange=[-SERVO_TORQUE, SERVO_TORQUE],
        )
        return body

    def box(self, body: Any, xyz: Vec3, half: Vec3, *, mass: float, rgba: tuple[float, ...] | None = None) -> None:
        """A box of half sizes ``half`` about ``xyz``, along the axes of its link."""
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=xyz, size=half, mass=mass, **self._finish(rgba))

    def beam(
        self,
        body: Any,
        start: Vec3,
        end: Vec3,
        half: float,
        *,
        mass: float,
        wide: float | None = None,
        rgba: tuple[float, ...] | None = None,
        grips: bool = False,
    ) -> None:
        """A box from ``start`` to ``end``, ``2·half`` thick and ``2·wide`` broad; one that grips has much friction."""
        grip = HARD_CONTACT | {"friction": [1.5, 0.02, 0.0005], "condim": 4} if grips else {}
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            **_along(np.array(start), np.array(end), half, wide or half),
            mass=mass,
            **self._finish(rgba),
            **grip,
        )

    def mount_camera(self, hand: Any) -> None:
        """The wrist camera, beside the fingers, looking past them along the approach axis (gripper −z).

        It sits at an azimuth between the plane in which the jaw opens and its normal: in that plane the fixed finger
        would hide the jaw. The image's up points from the camera to the fingers.
        """
        turned = _rotation(quaternion((0.0, 0.0, WRIST_CAMERA_AZIMUTH)))
        tilted = turned @ _rotation(quaternion((0.0, -WRIST_CAMERA_TILT, 0.0)))
        position = turned @ np.array(WRIST_CAMERA_XYZ)
        case = position + tilted @ np.array([0.0, 0.0, 0.012])
        half = (0.008, 0.012, 0.006)
        hand.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, pos=case, quat=_quat(tilted), size=half, mass=0.01, **self._finish(LENS)
        )
        self.beam(hand, (0.0, 0.0, 0.0), tuple(case), 0.004, mass=0.005, rgba=MOTOR)
        upright = tilted @ _rotation(quaternion((0.0, 0.0, -pi / 2)))
        hand.add_camera(name=f"{self._prefix}wrist", pos=position, quat=_quat(upright), fovy=WRIST_CAMERA_FOVY)

    def _finish(self, rgba: tuple[float, ...] | None) -> dict[str, Any]:
        return {
            "rgba": rgba or self._colour,
            "contype": self._contact.contype,
            "conaffinity": self._contact.conaffinity,
        }


def quaternion(rpy: Vec3) -> list[float]:
    """Quaternion wxyz of fixed-axis roll, pitch, yaw in rad, as a URDF writes them."""
    quat = np.zeros(4)
    mujoco.mju_euler2Quat(quat, np.array(rpy), "XYZ")
    return [float(v) for v in quat]


def _rotation(quat: list[float]) -> NDArray[np.float64]:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.array(quat))
    return matrix.reshape(3, 3)


def _quat(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, matrix.flatten())
    return quat


def _along(start: NDArray[np.float64], end: NDArray[np.float64], half: float, wide: float) -> dict[str, Any]:
    """Position, orientation and half sizes of a box between two points, its broad side as near to y or z as can be."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    z = axis / length
    # Fingers of the hand are broad along y, all other beams lie in the xy plane of their link and are broad along z.
    broad = np.array([0.0, 1.0, 0.0]) if abs(z[2]) > 0.5 else np.array([0.0, 0.0, 1.0])
    x = np.cross(broad, z)
    x /= np.linalg.norm(x)
    matrix = np.column_stack([x, np.cross(z, x), z])
    return {"pos": (start + end) / 2, "quat": _quat(matrix), "size": [half, wide, length / 2]}
