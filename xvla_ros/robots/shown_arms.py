"""The arms of a robot whose tools are shown, and where those are for given joints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.robots.kinematics import Chain, RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tool_arm import ToolArm, policy_joints

Floats = NDArray[np.float64]


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
    """Return what is shown of a robot: the tools of its ``arms``, or in joint space those of the section ``view``.

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
        # a URDF of two equal arms gives their joints the policy's names, where ROS may give them the same
        listed = tool.joints or (chain.joints if set(chain.joints) <= set(order) else ())
        joints = policy_joints(profile, chain, listed, f"view.{name}")
        columns = np.array([order.index(joint) for joint in joints], dtype=np.intp)
        found.append(ShownArm(name, tool.frame or tool.base_link, chain, columns))
    return tuple(found)
