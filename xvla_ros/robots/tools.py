# SPDX-License-Identifier: Apache-2.0
"""The tools of a robot: the arms that carry them, those that are only shown, and the boxes they stay in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import KinematicsError, did_you_mean
from xvla_ros.robots.kinematics import Chain, InverseKinematics, PathFollower, RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.consistency import shared_joints
from xvla_ros.robots.profile.schema import Tool
from xvla_ros.robots.tool_pose import BOX_TOLERANCE
from xvla_ros.types import Floats

ROUNDING = 1e-6  # m
LIMIT_TOLERANCE = 1e-3  # rad, m or a share of a speed; profiles and URDFs round


@dataclass(frozen=True, eq=False)
class ToolArm:
    """One tool with the arm that carries it.

    Attributes:
        name: the tool's name in the profile.
        tool: its settings.
        chain: joints from its base_link to its tip_link.
        columns: int [K], the places of these joints in ``policy_order``.
        gripper: the place of its gripper's joint there.
        inverse: within the limits of the profile.
        follower: within its speeds and tolerances.
    """

    name: str
    tool: Tool
    chain: Chain
    columns: NDArray[np.intp]
    gripper: int
    inverse: InverseKinematics
    follower: PathFollower


def tool_arms(profile: Profile, description: RobotDescription | None = None) -> dict[str, ToolArm]:
    """Return the arms of a profile by tool name; none for a profile in joint space.

    Args:
        profile: the robot.
        description: from its ``robot_description`` topic; it comes before the ``urdf`` that the tools name.

    Raises:
        KinematicsError: Pinocchio or a URDF is missing, joints or limits of profile and URDF differ, or a joint belongs
            to two tools or to no command group; the message names every difference.
    """
    if not profile.action_spec.is_end_effector:
        return {}
    arms = {name: _arm(profile, name, tool, description) for name, tool in profile.tools.items()}
    _refuse_ownership(profile, arms)
    return arms


def _refuse_ownership(profile: Profile, arms: Mapping[str, ToolArm]) -> None:
    """Refuse joints, those found by name too, of two tools or roles, and those that no command group moves."""
    order, groups = profile.joints.policy_order, profile.commands.by_name.values()
    joints = {name: [order[column] for column in (*arm.columns, arm.gripper)] for name, arm in arms.items()}
    problems = [
        f"{key}: {message}"
        for key, _, _, message in shared_joints({name: (each[:-1], each[-1]) for name, each in joints.items()})
    ]
    if profile.commands.interface != "pose":
        commanded = {joint for group in groups for joint in group.joints}
        problems += [
            f"joint {joint!r} of tool {name!r} is commanded by no group"
            for name, each in joints.items()
            for joint in each
            if joint not in commanded
        ]
    if problems:
        raise KinematicsError(
            f"{profile.name}: {'; '.join(problems)}; expected each joint in one arm or gripper, and in one command "
            "group: look at base_link and tip_link of each tool, and at commands.groups"
        )


def _arm(profile: Profile, name: str, tool: Tool, description: RobotDescription | None) -> ToolArm:
    source = description or _named(profile, name, tool)
    chain = Chain(source, tool.base_link, tool.tip_link)
    joints = policy_joints(profile, chain, tool.joints, f"tools.{name}")
    settings = [profile.joints.by_name[joint] for joint in joints]
    low, high = np.array([joint.lower for joint in settings]), np.array([joint.upper for joint in settings])
    speed = np.array([joint.max_velocity for joint in settings])
    _refuse_differences(profile, name, chain, joints)
    if tool.home and len(tool.home) != len(joints):
        raise KinematicsError(
            f"{profile.name}: tools.{name}.home has {len(tool.home)} positions, expected {len(joints)}, one for each "
            f"of {', '.join(joints)}"
        )
    _refuse_home(profile, name, tool, joints)
    if profile.commands.interface == "pose" and tool.frame in {*chain.links} - {tool.base_link}:
        raise KinematicsError(
            f"{profile.name}: tools.{name}.frame is {tool.frame!r}, another link of {chain.description.origin} than "
            f"base_link, in which poses are commanded; expected it empty or {tool.base_link!r}"
        )
    order = profile.joints.policy_order
    inverse = InverseKinematics(chain, lower=low, upper=high, home=tool.home or None, approach=tool.approach)
    return ToolArm(
        name=name,
        tool=tool,
        chain=chain,
        columns=np.array([order.index(joint) for joint in joints], dtype=np.intp),
        gripper=order.index(tool.gripper.joint),
        inverse=inverse,
        follower=PathFollower(
            inverse, speed, position_tolerance=tool.position_tolerance, rotation_tolerance=tool.rotation_tolerance
        ),
    )


def _named(profile: Profile, name: str, tool: Tool) -> RobotDescription:
    if not tool.urdf:
        raise KinematicsError(
            f"{profile.name}: tools.{name}.urdf is empty and no robot_description was received; name a URDF file, or "
            "start robot_state_publisher"
        )
    return RobotDescription.from_file(tool.urdf, profile.source.parent if profile.source is not None else None)


def policy_joints(profile: Profile, chain: Chain, listed: tuple[str, ...], key: str) -> tuple[str, ...]:
    """Return the policy's names of the joints of a chain: as ``listed``, or else by the names ROS gives them.

    Raises:
        KinematicsError: the list has another length or order, or the names lead nowhere; the message says what to
            write under the profile's ``key``.
    """
    if listed:
        if len(listed) != len(chain.joints):
            raise KinematicsError(
                f"{profile.name}: {key}.joints lists {len(listed)} joints ({', '.join(listed)}), but "
                f"{chain.description.origin} has {len(chain.joints)} between {chain.base_link} and {chain.tip_link}: "
                f"{', '.join(chain.joints)}"
            )
        for policy_name, joint in zip(listed, chain.joints, strict=True):
            ros_name = profile.joints.by_name[policy_name].name
            if ros_name in chain.joints and ros_name != joint:
                raise KinematicsError(
                    f"{profile.name}: {key}.joints has {policy_name!r}, which is {ros_name!r} in ROS, instead of "
                    f"{joint!r}; expected the order from {chain.base_link} to {chain.tip_link} in "
                    f"{chain.description.origin}: {', '.join(chain.joints)}"
                )
        return listed
    found = []
    by_ros_name: dict[str, list[str]] = {}
    for policy_name in profile.joints.policy_order:
        by_ros_name.setdefault(profile.joints.by_name[policy_name].name, []).append(policy_name)
    for joint in chain.joints:
        candidates = by_ros_name.get(joint, [])
        if len(candidates) != 1:
            told = f"{len(candidates)} joints of the profile have that name" if candidates else "no joint has that name"
            raise KinematicsError(
                f"{profile.name}: joint {joint!r} of {chain.description.origin} moves tool {key.split('.')[-1]!r}, and "
                f"{told}{did_you_mean(joint, by_ros_name)}; list the policy's names of the arm's joints, starting at "
                f"the base, in {key}.joints"
            )
        found.append(candidates[0])
    return tuple(found)


def _refuse_differences(profile: Profile, name: str, chain: Chain, joints: tuple[str, ...]) -> None:
    """Refuse limits wider than the URDF's, of the arm's joints and of a gripper the URDF knows by its ROS name."""
    gripper = profile.tools[name].gripper.joint
    pairs = [*zip(joints, chain.joints, strict=True), (gripper, profile.joints.by_name[gripper].name)]
    problems = []
    for joint, of_urdf in pairs:
        if of_urdf not in chain.limits:
            continue
        ours, (low, high, speed) = profile.joints.by_name[joint], chain.limits[of_urdf]
        if ours.lower < low - LIMIT_TOLERANCE or ours.upper > high + LIMIT_TOLERANCE:
            problems.append(
                f"joint {joint!r} may move {ours.lower:g} … {ours.upper:g} in the profile and {low:g} … {high:g} "
                f"in the URDF ({of_urdf})"
            )
        if speed > 0.0 and ours.max_velocity > speed * (1.0 + LIMIT_TOLERANCE):
            problems.append(
                f"joint {joint!r} has max_velocity {ours.max_velocity:g} in the profile and {speed:g} in the URDF"
            )
    if problems:
        raise KinematicsError(
            f"{profile.name}: tool {name!r} does not fit {chain.description.origin}: {'; '.join(problems)}; the "
            "profile's limits must be within the robot's limits"
        )


def _refuse_home(profile: Profile, name: str, tool: Tool, joints: tuple[str, ...]) -> None:
    for joint, position in zip(joints, tool.home, strict=False):
        limits = profile.joints.by_name[joint]
        if not limits.lower - LIMIT_TOLERANCE <= position <= limits.upper + LIMIT_TOLERANCE:
            raise KinematicsError(
                f"{profile.name}: tools.{name}.home has {position:g} for joint {joint!r}, expected {limits.lower:g} … "
                f"{limits.upper:g} rad or m, the limits of that joint"
            )


@dataclass(frozen=True, eq=False)
class ShownArm:
    """One arm whose tool is shown.

    Attributes:
        name: of the tool in the profile.
        frame: frame_id of the tool's positions.
        chain: joints from its base link to its tip link.
        columns: int [K], the places of these joints in ``policy_order``.
    """

    name: str
    frame: str
    chain: Chain
    columns: NDArray[np.intp]

    def path(self, joints: Floats) -> Floats:
        """Return the tool's positions [T, 3] in m in ``frame`` for joint positions [T, J] in rad or m."""
        return self.chain.poses(joints[:, self.columns]).positions


def shown_arms(profile: Profile, arms: Mapping[str, ToolArm]) -> tuple[ShownArm, ...]:
    """Return the tools to show of a robot: those of its ``arms``, or in joint space those of the section ``view``.

    Raises:
        KinematicsError: Pinocchio or a URDF of that section is missing, or its joints are not the profile's.
    """
    if arms:
        return tuple(
            ShownArm(name, arm.tool.frame or arm.tool.base_link, arm.chain, arm.columns) for name, arm in arms.items()
        )
    beside = profile.source.parent if profile.source is not None else None
    found = []
    for name in profile.view.order:
        tool = profile.view.by_name[name]
        chain = Chain(RobotDescription.from_file(tool.urdf, beside), tool.base_link, tool.tip_link)
        order = profile.joints.policy_order
        # a URDF of two equal arms names their joints as the policy does; ROS may use the same name for both
        listed = tool.joints or (chain.joints if set(chain.joints) <= set(order) else ())
        joints = policy_joints(profile, chain, listed, f"view.{name}")
        columns = np.array([order.index(joint) for joint in joints], dtype=np.intp)
        found.append(ShownArm(name, tool.frame or tool.base_link, chain, columns))
    return tuple(found)


class Workspace:
    """The boxes of a robot's tools.

    A tool that is outside where a motion begins may come back or stay, but goes no further out on any side, nor out
    again once it has come in.

    Args:
        arms: by tool name; without any there is nothing to leave.
    """

    def __init__(self, arms: Mapping[str, ToolArm]) -> None:
        self._arms = dict(arms)
        self._begun = dict.fromkeys(arms, np.zeros(6))  # [6] how far outside each tool was last, on each side, m

    def begin(self, start: Floats) -> None:
        """Take note of where a motion begins: joints [J] in rad or m."""
        self._begun = {name: _outside(arm, start[None])[1][0] for name, arm in self._arms.items()}

    def go_on(self, start: Floats) -> None:
        """Take note of where a motion goes on: no side on which a tool has come in since is left as far again."""
        for name, begun in self._begun.items():
            if begun.any():
                self._begun[name] = np.minimum(begun, _outside(self._arms[name], start[None])[1][0])

    def left_by(self, path: Floats, start: Floats) -> str:
        """Say which tool leaves its box on a path [K, J] of that motion; empty where none does.

        One that something has moved further out since may come back as well.

        Args:
            path: in rad or m.
            start: [J] where the path begins.
        """
        for name, arm in self._arms.items():
            positions, depth = _outside(arm, np.vstack([path, start]))
            further = depth - np.maximum(self._begun[name] + BOX_TOLERANCE, depth[-1] + ROUNDING)
            worst, side = np.unravel_index(np.argmax(further), further.shape)
            if further[worst, side] > 0.0:
                where = ", ".join(f"{value:.3f}" for value in positions[worst])
                return f"tool {name!r} would leave its workspace box by {depth[worst, side]:.3f} m, at ({where})"
        return ""


def _outside(arm: ToolArm, path: Floats) -> tuple[Floats, Floats]:
    """Return where [K, 3] a tool is on a path [K, J], and how far [K, 6] outside its box on each side, 0 inside, m."""
    low, high = np.array(arm.tool.workspace_min), np.array(arm.tool.workspace_max)
    positions = arm.chain.poses(path[:, arm.columns]).positions
    return positions, np.maximum(np.concatenate([low - positions, positions - high], axis=1), 0.0)
