# SPDX-License-Identifier: Apache-2.0
"""What leaves the node for each command group, by the profile's command interface."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from action_msgs.msg import GoalStatus
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from rclpy.action import ActionClient
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.control.motion import CommandWindow
from xvla_ros.errors import SetupError
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.messages import message_class
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.interfaces import (
    FLOAT_ARRAY,
    GRIPPER_COMMAND,
    INTERFACES,
    JOINT_STATE,
    JOINT_TRAJECTORY,
    PARALLEL_GRIPPER_COMMAND,
    POSE,
)
from xvla_ros.robots.kinematics import Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Tool


def command_type(profile: Profile, group: str) -> Any:
    """Return the message class of a command group's topic; a group commanded by an action has none."""
    return messages.message_class(profile.commands.kind_of(group).message_type)


def command_messages(profile: Profile, window: CommandWindow, encoder: StateEncoder) -> dict[str, Any]:
    """Return the message of every command group, in the profile's order.

    For grippers with an interface of their own it is the setpoint, in rad or m.

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
    """Return the pose of tip_link in base_link; moveit_servo's command frames must be these two."""
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


PAUSE_S = 0.5  # without setpoints for this long, others may have moved the gripper
SAME = 1e-6  # share of a range within which two setpoints are the same
STANDS_S = 0.1  # s of the same setpoint after which the motion has ended
RETRY_S = 1.0  # s from an aborted goal to the next try
MATCHING_S = 0.1  # s from when a lost controller is seen again until messages surely reach it


class ChangeGate:
    """Lets a setpoint pass that is far enough from the one before, or that stands still and is not yet sent.

    Args:
        span: range of the joint.
        min_change: least change of a moving setpoint that is sent, as a share of ``span``.
        clock: steady s.
    """

    def __init__(self, span: float, min_change: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._far, self._same = min_change * span, SAME * span
        self._clock = clock
        self._sent: float | None = None
        self._last: tuple[float, float] | None = None  # setpoint, when
        self._since = 0.0  # when it was first the same as now
        self._lost_until, self._again_at = -math.inf, math.inf

    def passes(self, setpoint: float) -> bool:
        """Say whether ``setpoint``, that of this command period, is to be sent."""
        now, last = self._clock(), self._last
        self._last = setpoint, now
        if last is None or abs(setpoint - last[0]) > self._same:
            self._since = now
        is_lost = now < self._lost_until or now >= self._again_at
        if last is None or self._sent is None or is_lost or now - last[1] > PAUSE_S:
            return self._take(setpoint)
        away, stands = abs(setpoint - self._sent), now - self._since >= STANDS_S
        return (away > self._far or (stands and away > self._same)) and self._take(setpoint)

    def _take(self, setpoint: float) -> bool:
        self._sent, self._again_at = setpoint, math.inf
        return True

    def forget(self, after: float = 0.0, lost_for: float = 0.0) -> None:
        """Let the setpoint pass again, as the last did not arrive: ``after`` so many s, and each for ``lost_for`` s."""
        now = self._clock()
        self._again_at, self._lost_until = now + after, max(self._lost_until, now + lost_for)


class GripperTopic:
    """A gripper that takes its setpoint from a std_msgs/Float64MultiArray of one value."""

    def __init__(self, node: Node, topic: str, gate: ChangeGate) -> None:
        self._node, self._gate = node, gate
        self._publisher = node.create_publisher(Float64MultiArray, topic, qos.COMMAND)

    @property
    def topic_name(self) -> str:
        return str(self._publisher.topic_name)

    def get_subscription_count(self) -> int:
        """Return how many take the setpoints; where nobody does, the last has not arrived."""
        count = int(self._publisher.get_subscription_count())
        if not count:
            self._gate.forget(lost_for=MATCHING_S)
        return count

    def publish(self, setpoint: float) -> None:
        """Send the setpoint in rad or m, if it has changed and somebody takes it."""
        if self.get_subscription_count() and self._gate.passes(setpoint):
            self._publisher.publish(Float64MultiArray(data=[setpoint]))

    def destroy(self) -> None:
        self._node.destroy_publisher(self._publisher)


class GripperAction:
    """A gripper whose controller is an action server; a goal that changes replaces the one before.

    A goal that is aborted is sent again ``RETRY_S`` later: the controller may have restarted. One that has gripped
    something may abort, too; to grip it again does no harm.

    Args:
        node: the client's.
        topic: name of the action.
        interface: ``gripper_action`` or ``parallel_gripper_action``.
        joint: its name in ROS.
        max_effort: N or Nm; 0 leaves it to the controller.
        gate: of the setpoints.
        group: of the client's callbacks.

    Raises:
        SetupError: control_msgs is not installed.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        interface: str,
        joint: str,
        max_effort: float,
        gate: ChangeGate,
        group: CallbackGroup,
    ) -> None:
        self._node, self._gate = node, gate
        self._joint, self._max_effort = joint, max_effort
        self._type, self._fill = _action_type(interface, topic), GOALS[INTERFACES[interface].type]
        self._client = ActionClient(node, self._type, topic, callback_group=group)
        self.topic_name = str(node.resolve_topic_name(topic))
        self._sent = 0  # goals
        self._is_abort_told = False

    def get_subscription_count(self) -> int:
        """Return 1 while the action is served, else 0: the last goal is gone then."""
        is_served = self._client.server_is_ready()
        if not is_served:
            self._gate.forget()
        return int(is_served)

    def publish(self, setpoint: float) -> None:
        """Send a goal with the setpoint in rad or m, if it has changed and somebody serves the action."""
        if self.get_subscription_count() and self._gate.passes(setpoint):
            self._sent += 1
            answer = self._client.send_goal_async(self._goal(setpoint))
            answer.add_done_callback(partial(self._on_answer, self._sent))

    def destroy(self) -> None:
        self._client.destroy()

    def _goal(self, setpoint: float) -> Any:
        goal = self._type.Goal()
        self._fill(goal, self._joint, setpoint, self._max_effort)
        return goal

    def _on_answer(self, number: int, future: Any) -> None:
        handle = future.result()
        if handle is None or not handle.accepted:
            self._gate.forget()
            self._node.get_logger().warning(
                f"{self.topic_name} refused a setpoint of {self._joint}", throttle_duration_sec=1.0
            )
        else:
            handle.get_result_async().add_done_callback(partial(self._on_result, number))

    def _on_result(self, number: int, future: Any) -> None:
        status = getattr(future.result(), "status", GoalStatus.STATUS_UNKNOWN)
        if status == GoalStatus.STATUS_SUCCEEDED:
            self._is_abort_told = False
        elif status == GoalStatus.STATUS_ABORTED and number == self._sent:
            self._gate.forget(after=RETRY_S)
            if not self._is_abort_told:
                self._node.get_logger().warning(
                    f"{self.topic_name} aborted a setpoint of {self._joint}; it is sent again every {RETRY_S:g} s. "
                    "A gripper that holds something may do so"
                )
            self._is_abort_told = True


def gripper_outlet(node: Node, profile: Profile, group: str, callbacks: CallbackGroup) -> GripperTopic | GripperAction:
    """Make the outlet for a gripper's setpoints; ``require_outlets`` checks what it needs."""
    settings, interface = profile.commands.by_name[group], profile.commands.interface_of(group)
    joint = profile.joints.by_name[settings.joints[0]]
    gate = ChangeGate(joint.upper - joint.lower, settings.min_change)
    if not INTERFACES[interface].is_action:
        return GripperTopic(node, settings.topic, gate)
    return GripperAction(node, settings.topic, interface, joint.name, settings.max_effort, gate, callbacks)


def require_outlets(profile: Profile) -> None:
    """Check, before anything is made, that all that a robot's grippers need is installed.

    Raises:
        SetupError: naming it.
    """
    for group in profile.commands.groups:
        interface = profile.commands.interface_of(group)
        if INTERFACES[interface].is_action:
            _action_type(interface, profile.commands.by_name[group].topic)


def has_gripper_outlet(profile: Profile, group: str) -> bool:
    """Say whether a group's setpoints go through a ``gripper_outlet``."""
    return profile.commands.kind_of(group).is_gripper


def _fill_gripper_command(goal: Any, joint: str, setpoint: float, max_effort: float) -> None:
    goal.command.position, goal.command.max_effort = setpoint, max_effort


def _fill_parallel_gripper_command(goal: Any, joint: str, setpoint: float, max_effort: float) -> None:
    effort = [max_effort] if max_effort else []
    goal.command = JointState(name=[joint], position=[setpoint], effort=effort)


# action type → (goal, name of the joint in ROS, setpoint, max_effort): puts the setpoint into the goal
GOALS: Mapping[str, Callable[[Any, str, float, float], None]] = {
    GRIPPER_COMMAND: _fill_gripper_command,
    PARALLEL_GRIPPER_COMMAND: _fill_parallel_gripper_command,
}


def _action_type(interface: str, topic: str) -> Any:
    try:
        return message_class(INTERFACES[interface].type)
    except ImportError as error:
        raise SetupError(
            f"the interface {interface} of {topic} needs the package control_msgs, which cannot be imported ({error}): "
            "install ros-$ROS_DISTRO-control-msgs, or command the gripper by gripper_command or joint_trajectory"
        ) from error
