"""What leaves the node for each command group, by the profile's command interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.control.window import CommandWindow
from xvla_ros.nodes import messages
from xvla_ros.robots.encode import StateEncoder
from xvla_ros.robots.kinematics import Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.schema import GRIPPER_INTERFACES, Tool

COMMAND_TYPES: Mapping[str, type] = {
    "joint_trajectory": JointTrajectory,
    "forward_command": Float64MultiArray,
    "joint_state": JointState,
    "pose": PoseStamped,
    "gripper_command": Float64MultiArray,
}


def command_type(profile: Profile, group: str) -> type:
    """Return the message type of a command group's topic; a group commanded by an action has none."""
    return COMMAND_TYPES[profile.commands.interface_of(group)]


def command_messages(profile: Profile, window: CommandWindow, encoder: StateEncoder) -> dict[str, Any]:
    """Return the message of every command group, in the profile's order; for grippers with an interface of their own
    the setpoint, in rad or m.

    A trajectory carries the whole window. The other interfaces take one setpoint at a time: the window's first point,
    where the joints are to be ``lead`` after now. A pose is that of the tool at this point, by forward kinematics: so
    the limits of the joints, the workspace box and the tolerances hold for it as well.

    Args:
        profile: the robot.
        window: what is to be commanded.
        encoder: of the same robot.
    """
    poses = encoder.tool_poses(window.positions[0]) if profile.commands.interface == "pose" else {}
    return {group: _message(profile, group, window, poses) for group in profile.commands.groups}


def commanded_points(profile: Profile, group: str, message: Any) -> tuple[list[str], list[tuple[float, list[float]]]]:
    """Return what a command asks of the joints: their names in ROS, and (s after its receipt, positions) of each point.

    A setpoint is due at ``lead``. A pose says nothing of joints: no names and no points.
    """
    interface = profile.commands.interface_of(group)
    if interface == "joint_trajectory":
        return list(message.joint_names), [
            (point.time_from_start.sec + point.time_from_start.nanosec / 1e9, list(point.positions))
            for point in message.points
        ]
    if interface == "joint_state":
        return list(message.name), [(profile.timing.lead, list(message.position))]
    if interface in ("forward_command", "gripper_command"):
        names = [profile.joints.by_name[joint].name for joint in profile.commands.by_name[group].joints]
        return names, [(profile.timing.lead, list(message.data))]
    return [], []


def _message(profile: Profile, group: str, window: CommandWindow, poses: Mapping[str, Poses]) -> Any:
    interface, settings = profile.commands.interface_of(group), profile.commands.by_name[group]
    if interface == "pose":
        return _pose_message(profile.tools[settings.tool], poses[settings.tool], window.stamp)
    columns = [profile.joints.policy_order.index(joint) for joint in settings.joints]
    names = [profile.joints.by_name[joint].name for joint in settings.joints]
    setpoint = window.positions[0, columns].tolist()
    if interface in GRIPPER_INTERFACES:
        return setpoint[0]
    if interface == "forward_command":
        return Float64MultiArray(data=setpoint)
    if interface == "joint_state":
        message = JointState(name=names, position=setpoint)
        message.header.stamp = messages.stamp_message(window.stamp)
        return message
    return messages.joint_trajectory_message(
        names, window.times, window.positions[:, columns], window.velocities[:, columns]
    )


def _pose_message(tool: Tool, pose: Poses, stamp: int) -> PoseStamped:
    """The pose of tip_link in base_link; moveit_servo's command frame must be the same pair."""
    x, y, z, w = pose.quaternions_xyzw().tolist()
    place = Point(**dict(zip("xyz", pose.positions.tolist(), strict=True)))
    message = PoseStamped(pose=Pose(position=place, orientation=Quaternion(x=x, y=y, z=z, w=w)))
    message.header.frame_id = tool.frame or tool.base_link
    message.header.stamp = messages.stamp_message(stamp)
    return message
