# SPDX-License-Identifier: Apache-2.0
"""A WidowX 250s of boxes, built from the figures of its URDF (Interbotix, BSD-3).

Joint origins, axes, limits and the tool frame reproduce the official kinematics; shapes, masses and servos are ours.
Lengths in m, angles in rad, masses in kg.
"""

from __future__ import annotations

from math import pi

import mujoco

from xvla_ros.simulation.parts import MOTOR, PAD, ArmParts, Colour, Contact, JointFigures, Servo, Vec3

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
STRAIGHT: Vec3 = (0.0, 0.0, 0.0)
TURN = pi - 1e-5

JOINTS: dict[str, JointFigures] = {
    "waist": JointFigures((0.0, 0.0, 0.072), STRAIGHT, -TURN, TURN, Z),
    "shoulder": JointFigures((0.0, 0.0, 0.03865), STRAIGHT, -1.88496, 1.98968, Y),
    "elbow": JointFigures((0.04975, 0.0, 0.25), STRAIGHT, -2.14675, 1.60570, Y),
    "forearm_roll": JointFigures((0.175, 0.0, 0.0), STRAIGHT, -TURN, TURN, X),
    "wrist_angle": JointFigures((0.075, 0.0, 0.0), STRAIGHT, -1.74533, 2.14675, Y),
    "wrist_rotate": JointFigures((0.065, 0.0, 0.0), STRAIGHT, -TURN, TURN, X),
}
TOOL_XYZ: Vec3 = (0.093575, 0.0, 0.0)
# Where the fingers sit on their rail is ours; their travel is the URDF's. Their pads meet at 0.015.
FINGER = JointFigures((0.066, 0.0, 0.0), STRAIGHT, 0.015, 0.037, Y, slides=True)
OTHER_FINGER = JointFigures((0.066, 0.0, 0.0), STRAIGHT, 0.015, 0.037, (0.0, -1.0, 0.0), slides=True)

# Torques of the Dynamixel XM540-W270 and XM430-W350 at 12 V; stiff, as their integral term makes them.
STRONG = Servo(kp=4000.0, kv=30.0, force=10.6, inertia=0.10, damping=0.6, friction=0.05)
LIGHT = Servo(kp=2000.0, kv=8.0, force=4.1, inertia=0.025, damping=0.3, friction=0.03)
GRIP = Servo(kp=3000.0, kv=30.0, force=25.0, inertia=0.2, damping=2.0)
SERVOS = {"waist": STRONG, "shoulder": STRONG, "elbow": STRONG}


def add_arm(spec: mujoco.MjSpec, *, prefix: str, xyz: Vec3, colour: Colour, contact: Contact) -> None:
    """Add an arm that stands on ``xyz`` and faces +x.

    Names: joints and actuators ``<prefix><joint>``, of which ``gripper`` is the left finger, which the right one
    mirrors; the site ``<prefix>tool`` (ee_gripper_link).
    """
    arm = ArmParts(spec, prefix, colour, contact, weightless=True)
    base = arm.frame(spec.worldbody, "base", xyz)
    arm.box(base, (-0.01, 0.0, 0.012), (0.085, 0.065, 0.012), mass=0.3)
    arm.rod(base, (0.0, 0.0, 0.024), (0.0, 0.0, 0.066), 0.048, mass=0.4, rgba=MOTOR)

    body = base
    for joint, figures in JOINTS.items():
        body = arm.link(body, joint, figures, SERVOS.get(joint, LIGHT))
        _add_shape(arm, body, joint)
    arm.tool(body, TOOL_XYZ)
    _add_fingers(arm, body)


def _add_shape(arm: ArmParts, link: object, joint: str) -> None:
    if joint == "waist":
        arm.rod(link, (0.0, 0.0, -0.004), (0.0, 0.0, 0.012), 0.05, mass=0.15)
        arm.box(link, (-0.012, 0.0, 0.036), (0.028, 0.034, 0.026), mass=0.35, rgba=MOTOR)
    elif joint == "shoulder":
        arm.rod(link, (0.0, -0.044, 0.0), (0.0, 0.044, 0.0), 0.021, mass=0.15)
        arm.beam(link, (0.0, 0.030, 0.0), (0.0, 0.030, 0.25), 0.016, wide=0.005, mass=0.10)
        arm.beam(link, (0.0, -0.030, 0.0), (0.0, -0.030, 0.25), 0.016, wide=0.005, mass=0.10)
        arm.box(link, (0.012, 0.0, 0.25), (0.045, 0.036, 0.018), mass=0.15)
    elif joint == "elbow":
        arm.rod(link, (0.0, -0.040, 0.0), (0.0, 0.040, 0.0), 0.021, mass=0.15, rgba=MOTOR)
        arm.beam(link, (0.01, 0.0, 0.0), (0.165, 0.0, 0.0), 0.017, mass=0.20)
    elif joint == "forearm_roll":
        arm.rod(link, (-0.012, 0.0, 0.0), (0.055, 0.0, 0.0), 0.019, mass=0.12, rgba=MOTOR)
    elif joint == "wrist_angle":
        arm.rod(link, (0.0, -0.026, 0.0), (0.0, 0.026, 0.0), 0.017, mass=0.06)
        arm.beam(link, (0.010, 0.0, 0.0), (0.058, 0.0, 0.0), 0.018, mass=0.08, rgba=MOTOR)
    elif joint == "wrist_rotate":
        arm.box(link, (0.026, 0.0, 0.0), (0.030, 0.022, 0.020), mass=0.12)
        arm.box(link, (0.060, 0.0, 0.0), (0.006, 0.050, 0.014), mass=0.05, rgba=MOTOR)


def _add_fingers(arm: ArmParts, hand: object) -> None:
    for side, joint, figures in ((1.0, "gripper", FINGER), (-1.0, "right_finger", OTHER_FINGER)):
        finger = (arm.link if side > 0 else arm.passive_link)(hand, joint, figures, GRIP)
        arm.box(finger, (0.010, side * -0.002, 0.0), (0.010, 0.009, 0.009), mass=0.015, rgba=MOTOR)
        arm.box(finger, (0.0195, side * -0.0105, 0.0), (0.0195, 0.0045, 0.009), mass=0.015, rgba=PAD, grips=True)
    arm.couple("right_finger", "gripper")
