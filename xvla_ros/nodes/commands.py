"""What leaves the node for each command group, by the profile's command interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.control.motion import CommandWindow
from xvla_ros.nodes import messages
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY, POSE
from xvla_ros.robots.kinematics import Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Tool

Points = tuple[list[str], list[tuple[float, list[float]]]]


def command_type(profile: Profile, group: str) -> Any:
    """Return the message class of a command group's topic; a group commanded by an action has none."""
    return messages.message_class(profile.commands.kind_of(group).message_type)


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


def commanded_points(profile: Profile, group: str, message: Any) -> Points:
    """Return what a command asks of the joints: their names in ROS, and (s after its receipt, positions) of each point.

    A setpoint is due at ``lead``. A pose says nothing of joints: no names and no points.
    """
    return POINTS[profile.commands.kind_of(group).message_type](profile, group, message)


def _points_of_trajectory(profile: Profile, group: str, message: Any) -> Points:
    return list(message.joint_names), [
        (point.time_from_start.sec + point.time_from_start.nanosec / 1e9, list(point.positions))
        for point in message.points
    ]


def _points_of_array(profile: Profile, group: str, message: Any) -> Points:
    names = [profile.joints.by_name[joint].name for joint in profile.commands.by_name[group].joints]
    return names, [(profile.timing.lead, list(message.data))]


def _points_of_joint_state(profile: Profile, group: str, message: Any) -> Points:
    return list(message.name), [(profile.timing.lead, list(message.position))]


def _message(profile: Profile, group: str, window: CommandWindow, poses: Mapping[str, Poses]) -> Any:
    kind, settings = profile.commands.kind_of(group), profile.commands.by_name[group]
    if kind.message_type == POSE:
        return _pose_message(profile.tools[settings.tool], poses[settings.tool], window.stamp)
    columns = [profile.joints.policy_order.index(joint) for joint in settings.joints]
    if kind.is_gripper:
        return window.positions[0, columns[0]].item()
    names = [profile.joints.by_name[joint].name for joint in settings.joints]
    return ENCODERS[kind.message_type](window, columns, names)


def _trajectory_message(window: CommandWindow, columns: list[int], names: list[str]) -> JointTrajectory:
    return messages.joint_trajectory_message(
        names, window.times, window.positions[:, columns], window.velocities[:, columns]
    )


def _array_message(window: CommandWindow, columns: list[int], names: list[str]) -> Float64MultiArray:
    return Float64MultiArray(data=window.positions[0, columns].tolist())


def _joint_state_message(window: CommandWindow, columns: list[int], names: list[str]) -> JointState:
    message = JointState(name=names, position=window.positions[0, columns].tolist())
    message.header.stamp = messages.stamp_message(window.stamp)
    return message


def _pose_message(tool: Tool, pose: Poses, stamp: int) -> PoseStamped:
    """The pose of tip_link in base_link; moveit_servo's command frame must be the same pair."""
    x, y, z, w = pose.quaternions_xyzw().tolist()
    place = Point(**dict(zip("xyz", pose.positions.tolist(), strict=True)))
    message = PoseStamped(pose=Pose(position=place, orientation=Quaternion(x=x, y=y, z=z, w=w)))
    message.header.frame_id = tool.frame or tool.base_link
    message.header.stamp = messages.stamp_message(stamp)
    return message


# message type → (window, places of the group's joints in policy_order, their names in ROS) → the message; poses apart
ENCODERS: Mapping[str, Callable[[CommandWindow, list[int], list[str]], Any]] = {
    JOINT_TRAJECTORY: _trajectory_message,
    FLOAT_ARRAY: _array_message,
    JOINT_STATE: _joint_state_message,
}
POINTS: Mapping[str, Callable[[Profile, str, Any], Points]] = {
    JOINT_TRAJECTORY: _points_of_trajectory,
    FLOAT_ARRAY: _points_of_array,
    JOINT_STATE: _points_of_joint_state,
    POSE: lambda profile, group, message: ([], []),
}
