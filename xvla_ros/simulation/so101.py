# SPDX-License-Identifier: Apache-2.0
"""An SO-101 arm of boxes, built from the figures of its URDF (SO-ARM100, Apache-2.0).

Joint origins, axes, limits and the tool frame reproduce the official kinematics (new calibration); shapes, colours
and camera mounts are ours. Lengths in m, angles in rad, masses in kg.
"""

from __future__ import annotations

from math import pi
from typing import Any

import mujoco
import numpy as np

from xvla_ros.simulation.parts import MOTOR, PAD, ArmParts, Colour, Contact, JointFigures, Servo, Vec3, rotation

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

# Position servo of the STS3215 as MuJoCo Menagerie models it.
SERVO = Servo(kp=998.0, kv=2.73, force=3.35, inertia=0.028, damping=0.6, friction=0.052)

WRIST_CAMERA_XYZ: Vec3 = (-0.085, 0.0, 0.020)
WRIST_CAMERA_AZIMUTH = 1.0
WRIST_CAMERA_TILT = 0.64
WRIST_CAMERA_FOVY = 75.0


def add_arm(spec: mujoco.MjSpec, *, prefix: str, xyz: Vec3, colour: Colour, contact: Contact) -> None:
    """Add an arm that stands on ``xyz`` and faces +x.

    Names: joints and actuators ``<prefix><joint>``, the site ``<prefix>tool`` (gripper_frame_link) and the camera
    ``<prefix>wrist``.
    """
    arm = ArmParts(spec, prefix, colour, contact)
    base = spec.worldbody.add_body(name=f"{prefix}base", pos=xyz)
    arm.box(base, (0.02, 0.0, 0.008), (0.06, 0.045, 0.008), mass=0.05)
    arm.box(base, (0.032, 0.0, 0.036), (0.03, 0.024, 0.022), mass=0.10, rgba=MOTOR)

    shoulder = arm.link(base, "shoulder_pan", JOINTS["shoulder_pan"], SERVO)
    arm.box(shoulder, (-0.005, 0.0, -0.008), (0.032, 0.027, 0.014), mass=0.04)
    arm.box(shoulder, (-0.028, 0.0, -0.040), (0.019, 0.026, 0.030), mass=0.06)

    upper = arm.link(shoulder, "shoulder_lift", JOINTS["shoulder_lift"], SERVO)
    arm.box(upper, (0.0, 0.0, 0.018), (0.021, 0.019, 0.034), mass=0.055, rgba=MOTOR)
    arm.beam(upper, (-0.015, -0.002, 0.018), (-0.100, -0.010, 0.018), 0.016, mass=0.03)
    arm.box(upper, (-0.108, -0.020, 0.018), (0.019, 0.022, 0.021), mass=0.02)

    lower = arm.link(upper, "elbow_flex", JOINTS["elbow_flex"], SERVO)
    arm.box(lower, (0.0, 0.0, 0.018), (0.019, 0.019, 0.030), mass=0.055, rgba=MOTOR)
    arm.beam(lower, (-0.015, 0.002, 0.018), (-0.115, 0.005, 0.018), 0.014, mass=0.05)

    wrist = arm.link(lower, "wrist_flex", JOINTS["wrist_flex"], SERVO)
    arm.box(wrist, (0.0, 0.0, 0.018), (0.018, 0.018, 0.029), mass=0.05, rgba=MOTOR)
    arm.beam(wrist, (0.0, -0.015, 0.018), (0.0, -0.055, 0.018), 0.015, mass=0.03)

    hand = arm.link(wrist, "wrist_roll", JOINTS["wrist_roll"], SERVO)
    arm.box(hand, (0.004, 0.0, -0.012), (0.030, 0.022, 0.014), mass=0.035)
    arm.box(hand, (0.022, 0.0, -0.024), (0.014, 0.021, 0.012), mass=0.03, rgba=MOTOR)
    arm.beam(hand, (-0.018, 0.0, -0.026), (-0.014, 0.0, -0.104), 0.005, mass=0.022, wide=0.010, rgba=PAD, grips=True)
    _mount_camera(arm, hand)
    arm.tool(hand, TOOL_XYZ, TOOL_RPY)

    jaw = arm.link(hand, "gripper", JOINTS["gripper"], SERVO)
    arm.beam(jaw, (0.0, -0.002, 0.0188), (-0.002, -0.045, 0.0188), 0.006, mass=0.007, wide=0.012)
    arm.beam(
        jaw, (-0.002, -0.045, 0.0188), (-0.010, -0.080, 0.0188), 0.005, mass=0.005, wide=0.010, rgba=PAD, grips=True
    )


def _mount_camera(arm: ArmParts, hand: Any) -> None:
    """Add the wrist camera, beside the fingers, looking past them along the approach axis (gripper −z).

    It sits at an azimuth between the plane in which the jaw opens and its normal: in that plane the fixed finger
    would hide the jaw. The image's up points from the camera to the fingers.
    """
    turned = rotation((0.0, 0.0, WRIST_CAMERA_AZIMUTH))
    tilted = turned @ rotation((0.0, -WRIST_CAMERA_TILT, 0.0))
    x, y, z = (float(v) for v in turned @ np.array(WRIST_CAMERA_XYZ))
    case = arm.camera(hand, "wrist", (x, y, z), tilted @ rotation((0.0, 0.0, -pi / 2)), WRIST_CAMERA_FOVY)
    arm.beam(hand, (0.0, 0.0, 0.0), case, 0.004, mass=0.005, rgba=MOTOR)
