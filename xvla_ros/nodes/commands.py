"""What leaves the node for each command group, by the profile's command interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.control.window import CommandWindow
from xvla_ros.nodes import messages
from xvla_ros.robots.profile import Profile

COMMAND_TYPES: Mapping[str, type] = {
    "joint_trajectory": JointTrajectory,
    "forward_command": Float64MultiArray,
    "joint_state": JointState,
}


class UnsupportedInterfaceError(ValueError):
    """The profile commands its robot in a way that the node does not; names it and those it does."""


def command_type(profile: Profile) -> type:
    """Return the message type of the robot's command topics.

    Raises:
        UnsupportedInterfaceError: naming the interfaces that can be used.
    """
    interface = profile.commands.interface
    if interface not in COMMAND_TYPES:
        raise UnsupportedInterfaceError(
            f"robot {profile.name!r} has commands.interface {interface!r}; expected one of: {', '.join(COMMAND_TYPES)}"
        )
    return COMMAND_TYPES[interface]


def command_messages(profile: Profile, window: CommandWindow) -> dict[str, Any]:
    """Return the message of every command group, in the profile's order.

    A trajectory carries the whole window. The other interfaces take one setpoint at a time: the window's first point,
    where the joints are to be ``lead`` after now.
    """
    order = {name: column for column, name in enumerate(profile.joints.policy_order)}
    made = {}
    for group in profile.commands.groups:
        joints = profile.commands.by_name[group].joints
        columns = [order[joint] for joint in joints]
        names = [profile.joints.by_name[joint].name for joint in joints]
        setpoint = window.positions[0, columns].tolist()
        if profile.commands.interface == "forward_command":
            made[group] = Float64MultiArray(data=setpoint)
        elif profile.commands.interface == "joint_state":
            made[group] = JointState(name=names, position=setpoint)
            made[group].header.stamp = messages.stamp_message(window.stamp)
        else:
            made[group] = messages.joint_trajectory_message(
                names, window.times, window.positions[:, columns], window.velocities[:, columns]
            )
    return made
