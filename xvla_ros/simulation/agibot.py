# SPDX-License-Identifier: Apache-2.0
"""An AgiBot G1 of boxes and rods: a torso that stays where it is, two arms of seven joints with grippers, a head.

Joint origins, axes and limits reproduce those of its URDF (genie_sim, MPL-2.0); shapes, masses, servos and the
fingers are ours. Lengths in m, angles in rad, masses in kg.
"""

from __future__ import annotations

from math import pi
from typing import Any

import mujoco

from xvla_ros.simulation.parts import MOTOR, PAD, ArmParts, Colour, Contact, JointFigures, Servo, Vec3, looking

HALF = pi / 2
LIFT_XYZ: Vec3 = (0.0, 0.0, 0.6485)
PITCH_XYZ: Vec3 = (0.131, 0.0, 0.0)
PITCH_RPY: Vec3 = (-HALF, 0.0, 0.0)
ARM_BASE_XYZ: Vec3 = (0.0, -0.305, 0.0)
ARM_BASE_RPY: Vec3 = (HALF, 0.0, 0.0)
GRIPPER_CENTRE: Vec3 = (0.0, 0.0, 0.14308)
GRIPPER_OPEN = 0.7854

SHOULDERS: dict[str, tuple[Vec3, Vec3]] = {
    "left_": ((0.0, 0.025, 0.0), (-HALF, 0.0, 0.0)),
    "right_": ((0.0, -0.025, 0.0), (-HALF, 0.0, pi)),
}
JOINTS: dict[str, tuple[JointFigures, ...]] = {
    "left_": (
        JointFigures((0.0, 0.0, 0.1859), (0.0, 0.0, 0.0), -3.14, 3.14),
        JointFigures((0.0, 0.0, 0.0), (-HALF, 0.0, HALF), -2.09, 1.48),
        JointFigures((0.0, -0.305, 0.0), (-HALF, HALF, pi), -3.10, 3.10),
        JointFigures((0.0, 0.0, 0.0), (-HALF, 0.0, pi), -1.48, 1.48),
        JointFigures((0.0, -0.1975, 0.0), (-HALF, 0.0, -pi), -3.10, 3.10),
        JointFigures((0.0, 0.0, 0.0), (-HALF, 0.0, 0.0), -1.74, 1.74),
        JointFigures((0.0, -0.1805, 0.0), (HALF, 0.0, 0.0), -3.10, 3.10),
    ),
    "right_": (
        JointFigures((0.0, 0.0, 0.188), (0.0, 0.0, 0.0), -3.14, 3.14),
        JointFigures((0.0, 0.0, 0.0), (-HALF, 0.0, -HALF), -1.48, 2.09),
        JointFigures((0.0, -0.305, 0.0), (-HALF, -HALF, pi), -3.10, 3.10),
        JointFigures((0.0, 0.0, 0.0), (-HALF, 0.0, pi), -1.48, 1.48),
        JointFigures((0.0, -0.1975, 0.0), (-HALF, 0.0, -pi), -3.10, 3.10),
        JointFigures((0.0, 0.0, 0.0), (-HALF, 0.0, 0.0), -1.74, 1.74),
        JointFigures((0.0, -0.1805, 0.0), (HALF, 0.0, 0.0), -3.10, 3.10),
    ),
}
HOME: dict[str, tuple[float, ...]] = {
    "left_": (-1.0751, 0.6109, 0.2793, -1.2846, 0.7295, 1.4957, -0.1868),
    "right_": (1.0734, -0.6109, -0.2793, 1.2846, -0.7313, -1.4957, 0.1868),
}

# No data of the drives are public: these are torques usual for arms of this size, and servos that keep their setpoint.
PROXIMAL = Servo(kp=8000.0, kv=80.0, force=60.0, inertia=0.25, damping=2.0, friction=0.2)
DISTAL = Servo(kp=4000.0, kv=30.0, force=25.0, inertia=0.08, damping=1.0, friction=0.1)
GRIP = Servo(kp=150.0, kv=1.5, force=3.0, inertia=0.004, damping=0.05)

ARM_COLOUR: Colour = (0.88, 0.89, 0.91, 1.0)
HAND_CAMERA_XYZ: Vec3 = (0.0, -0.095, 0.02)
HAND_CAMERA_DIRECTION: Vec3 = (0.0, 0.42, 1.0)
HAND_CAMERA_FOVY = 78.0


def add_torso(
    spec: mujoco.MjSpec, *, xyz: Vec3, lift: float, pitch: float, colour: Colour, contact: Contact
) -> tuple[Any, ArmParts]:
    """Add base, column, chest and head, fixed at ``lift`` m and ``pitch`` rad, ``base_link`` at ``xyz``.

    Return the body ``arm_base``, which carries the arms, and the parts it is made with.
    """
    parts = ArmParts(spec, "", colour, contact)
    base = parts.frame(spec.worldbody, "base", xyz)
    parts.box(base, (-0.06, 0.0, 0.16), (0.24, 0.22, 0.15), mass=40.0)
    parts.box(base, (0.0, 0.0, 0.45), (0.07, 0.09, 0.20), mass=15.0, rgba=MOTOR)
    x, y, z = LIFT_XYZ
    lifted = parts.frame(base, "lift", (x, y, z + lift))
    parts.box(lifted, (0.03, 0.0, -0.02), (0.10, 0.10, 0.07), mass=5.0, rgba=MOTOR)
    leaning = parts.frame(parts.frame(lifted, "pitch_axis", PITCH_XYZ, PITCH_RPY), "pitch", (0, 0, 0), (0, 0, pitch))
    arm_base = parts.frame(leaning, "arm_base", ARM_BASE_XYZ, ARM_BASE_RPY)
    parts.box(arm_base, (-0.03, 0.0, -0.16), (0.075, 0.11, 0.13), mass=8.0)
    parts.box(arm_base, (-0.02, 0.0, 0.02), (0.065, 0.09, 0.055), mass=4.0)
    parts.rod(arm_base, (-0.02, 0.0, 0.07), (-0.02, 0.0, 0.20), 0.035, mass=1.0, rgba=MOTOR)
    parts.box(arm_base, (0.0, 0.0, 0.26), (0.085, 0.08, 0.075), mass=2.0)
    return arm_base, parts


def add_head_camera(parts: ArmParts, arm_base: Any) -> None:
    """Add the camera ``head``, in the brow, looking down on the table between the hands; xyz in ``arm_base``."""
    parts.camera(arm_base, "head", (0.115, 0.0, 0.28), looking((0.50, 0.0, -0.62), up=(0.0, 0.0, 1.0)), 80.0)


def add_arm(spec: mujoco.MjSpec, arm_base: Any, *, prefix: str, colour: Colour, contact: Contact) -> None:
    """Add the arm of ``left_`` or ``right_`` to the body ``arm_base``.

    Names: joints and actuators ``<prefix>joint1`` … ``<prefix>joint7`` and ``<prefix>gripper``, whose other finger
    mirrors it; sites ``<prefix>flange`` (arm_x_end_link) and ``<prefix>tool`` (gripper centre).
    """
    arm = ArmParts(spec, prefix, ARM_COLOUR, contact, weightless=True)
    body = arm.frame(arm_base, "shoulder", *SHOULDERS[prefix])
    arm.rod(body, (0.0, 0.0, 0.04), (0.0, 0.0, 0.125), 0.058, mass=1.0, rgba=MOTOR)
    for number, figures in enumerate(JOINTS[prefix], start=1):
        body = arm.link(body, f"joint{number}", figures, PROXIMAL if number < 5 else DISTAL)
        _add_shape(arm, body, number, colour)
    arm.tool(body, (0.0, 0.0, 0.0), name="flange")
    arm.tool(body, GRIPPER_CENTRE)
    _add_hand(arm, body, colour)


def _add_shape(arm: ArmParts, link: Any, number: int, colour: Colour) -> None:
    if number == 1:
        arm.rod(link, (0.0, 0.0, -0.055), (0.0, 0.0, 0.045), 0.055, mass=0.8)
    elif number == 2:
        arm.rod(link, (0.0, -0.02, 0.0), (0.0, -0.255, 0.0), 0.046, mass=1.1)
    elif number == 3:
        arm.rod(link, (0.0, 0.0, -0.048), (0.0, 0.0, 0.044), 0.047, mass=0.5, rgba=MOTOR)
    elif number == 4:
        arm.rod(link, (0.0, -0.02, 0.0), (0.0, -0.155, 0.0), 0.040, mass=0.8)
    elif number == 5:
        arm.rod(link, (0.0, 0.0, -0.040), (0.0, 0.0, 0.038), 0.040, mass=0.4, rgba=MOTOR)
    elif number == 6:
        arm.rod(link, (0.0, -0.02, 0.0), (0.0, -0.130, 0.0), 0.034, mass=0.5)
    elif number == 7:
        arm.rod(link, (0.0, 0.0, -0.050), (0.0, 0.0, 0.010), 0.033, mass=0.3, rgba=colour)


def _add_hand(arm: ArmParts, flange: Any, colour: Colour) -> None:
    """Add palm, two fingers that swing open in the flange's xz plane, and the camera ``hand_left`` or ``hand_right``.

    The camera is on the side that is up when the arm is at home (flange −y), from where it sees both fingers.
    """
    arm.box(flange, (0.0, 0.0, 0.037), (0.046, 0.026, 0.027), mass=0.3)
    for side, joint in ((1.0, "gripper"), (-1.0, "other_finger")):
        figures = JointFigures((side * 0.024, 0.0, 0.062), (0.0, 0.0, 0.0), 0.0, GRIPPER_OPEN, (0.0, side, 0.0))
        finger = (arm.link if side > 0 else arm.passive_link)(flange, joint, figures, GRIP)
        x = side * -0.017
        arm.beam(finger, (0.0, 0.0, 0.0), (x, 0.0, 0.048), 0.007, wide=0.010, mass=0.03, rgba=MOTOR)
        arm.box(finger, (x, 0.0, 0.070), (0.007, 0.011, 0.026), mass=0.03, rgba=PAD, grips=True)
    arm.couple("other_finger", "gripper")
    camera = ArmParts(arm.spec, "", MOTOR, Contact(0, 0))
    turn = looking(HAND_CAMERA_DIRECTION, up=(0.0, -1.0, 0.0))
    name = "hand_" + arm.prefix.removesuffix("_")
    case = camera.camera(flange, name, HAND_CAMERA_XYZ, turn, HAND_CAMERA_FOVY)
    camera.beam(flange, (0.0, 0.0, 0.0), case, 0.006, mass=0.01)
