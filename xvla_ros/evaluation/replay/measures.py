# SPDX-License-Identifier: Apache-2.0
"""What is compared of a chunk and a recording, and in which unit: joints, tools, grippers.

In joint space each joint is a measure, in rad, or in mm where it slides. Tool poses have three for each tool: how far
apart the positions are (mm), by which angle the rotations differ (degrees), and the gripper (share of its way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from xvla_ros.robots import tool_pose
from xvla_ros.robots.joints import gripper_joints
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Joint
from xvla_ros.robots.rotations import rot6d_to_matrix
from xvla_ros.types import Floats

RAD, MM, DEGREES, SHARE = "rad", "mm", "degrees", "share"
JOINT, POSITION, ROTATION, GRIPPER = "joint", "position", "rotation", "gripper"
SLIDING = 0.2  # range in rad or m; a joint with less is a gripper's sliding finger, as no hinge has so little


@dataclass(frozen=True)
class Measure:
    """One figure of a waypoint.

    Attributes:
        name: of the joint, or of the tool.
        kind: joint, position, rotation or gripper.
        unit: rad, mm, degrees or share.
        main: whether it counts for the headline: arm joints, or positions of tools.
    """

    name: str
    kind: str
    unit: str
    main: bool

    @property
    def label(self) -> str:
        """For a table."""
        return self.name if self.kind == JOINT else f"{self.name} {self.kind}"


class Measures:
    """The measures of a robot.

    Attributes:
        all: M of them, in the order of ``differences``.
        main: columns of those that count for the headline.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._tools = profile.action_spec.is_end_effector
        self.all: tuple[Measure, ...] = tuple(_of_tools(profile) if self._tools else joint_measures(profile))
        self.main = [column for column, measure in enumerate(self.all) if measure.main]

    @property
    def unit(self) -> str:
        """Of the headline."""
        return self.all[self.main[0]].unit

    def differences(self, predicted: ArrayLike, recorded: ArrayLike) -> Floats:
        """Return how far apart two arrays [..., D] of actions are: [..., M], never negative."""
        first, second = np.asarray(predicted, np.float64), np.asarray(recorded, np.float64)
        first, second = np.broadcast_arrays(first, second)
        if not self._tools:
            scale = np.array([joint.scale for joint in self._profile.joints.ordered], np.float64)
            return np.abs((first - second) / scale) * joint_factors(self._profile)
        parts = []
        for number, tool in enumerate(self._profile.tools.values()):
            begin = number * tool_pose.CHANNELS
            ours, theirs = (values[..., begin : begin + tool_pose.CHANNELS] for values in (first, second))
            way = np.linalg.norm(ours[..., tool_pose.POSITION] - theirs[..., tool_pose.POSITION], axis=-1) * 1e3
            turn = self._angle(ours[..., tool_pose.ROTATION], theirs[..., tool_pose.ROTATION])
            span = abs(tool.gripper.closed_value - tool.gripper.open_value)
            grip = np.abs(ours[..., tool_pose.GRIPPER] - theirs[..., tool_pose.GRIPPER]) / span
            parts += [way, turn, grip]
        return np.stack(parts, axis=-1)

    def headline(self, differences: Floats) -> Floats:
        """Return one figure [...] of differences [..., M]: the mean of the measures that count for it."""
        mean: Floats = differences[..., self.main].mean(axis=-1)
        return mean

    def _angle(self, first: Floats, second: Floats) -> Floats:
        layout = self._profile.policy.rot6d or "interleaved"
        between = np.swapaxes(rot6d_to_matrix(first, layout), -1, -2) @ rot6d_to_matrix(second, layout)
        # from sine and cosine: the arc cosine alone makes a thousandth of a degree of equal rotations
        axis = np.stack(
            [
                between[..., 2, 1] - between[..., 1, 2],
                between[..., 0, 2] - between[..., 2, 0],
                between[..., 1, 0] - between[..., 0, 1],
            ],
            axis=-1,
        )
        cosine = np.trace(between, axis1=-2, axis2=-1) - 1.0
        angle: Floats = np.degrees(np.arctan2(np.linalg.norm(axis, axis=-1), cosine))
        return angle


def joint_measures(profile: Profile) -> list[Measure]:
    """Return a measure for each joint; the grippers' do not count for the headline."""
    grippers = gripper_joints(profile)
    found = [
        Measure(name, JOINT, MM if slides(joint) else RAD, column not in grippers and not slides(joint))
        for column, (name, joint) in enumerate(zip(profile.joints.policy_order, profile.joints.ordered, strict=True))
    ]
    if any(measure.main for measure in found):
        return found
    return [Measure(each.name, each.kind, each.unit, True) for each in found]


def slides(joint: Joint) -> bool:
    """Say whether a joint is taken for one that slides, with its position in m: profiles do not say."""
    return joint.upper - joint.lower < SLIDING


def joint_factors(profile: Profile) -> Floats:
    """Return the factors [J] from rad or m to the unit of each joint's measure."""
    return np.array([1e3 if slides(joint) else 1.0 for joint in profile.joints.ordered])


def _of_tools(profile: Profile) -> Sequence[Measure]:
    kinds = ((POSITION, MM, True), (ROTATION, DEGREES, False), (GRIPPER, SHARE, False))
    return [Measure(name, kind, unit, main) for name in profile.tools for kind, unit, main in kinds]
