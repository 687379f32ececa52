"""What leaves the node for each command interface."""

import numpy as np
import pytest

from xvla_ros.control.window import CommandWindow
from xvla_ros.robots import Profile, load_profile

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.nodes.commands import UnsupportedInterfaceError, command_messages, command_type

PAIR = load_profile("so101_bimanual_split")["so101_bimanual_split"]
ROWS = np.arange(24.0).reshape(2, 12)
WINDOW = CommandWindow(
    stamp=3_000_000_007,
    start=np.zeros(12),
    start_velocity=np.zeros(12),
    times=np.array([0.05, 0.1]),
    positions=ROWS,
    velocities=np.zeros((2, 12)),
    limited=0,
)
ARM = ["shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_pitch_joint", "wrist_roll_joint"]


def with_interface(interface):
    mapping = PAIR.to_mapping()
    mapping["commands"]["interface"] = interface
    return Profile.from_mapping(PAIR.name, mapping)


def test_a_trajectory_carries_the_window_of_each_groups_joints():
    sent = command_messages(PAIR, WINDOW)
    assert list(sent) == list(PAIR.commands.groups)
    assert all(type(message) is JointTrajectory is command_type(PAIR) for message in sent.values())
    assert list(sent["left_arm"].joint_names) == ARM
    assert [list(point.positions) for point in sent["right_gripper"].points] == [[11.0], [23.0]]


def test_setpoints_are_the_windows_first_point():
    profile = with_interface("forward_command")
    sent = command_messages(profile, WINDOW)
    assert all(type(message) is Float64MultiArray is command_type(profile) for message in sent.values())
    assert list(sent["right_arm"].data) == [6.0, 7.0, 8.0, 9.0, 10.0]
    profile = with_interface("joint_state")
    sent = command_messages(profile, WINDOW)
    assert all(type(message) is JointState is command_type(profile) for message in sent.values())
    assert (list(sent["left_arm"].name), list(sent["left_arm"].position)) == (ARM, [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (sent["left_arm"].header.stamp.sec, sent["left_arm"].header.stamp.nanosec) == (3, 7)
    assert not sent["left_arm"].velocity


def test_an_interface_that_cannot_be_used_is_named():
    commands = PAIR.commands.model_copy(update={"interface": "pose"})
    with pytest.raises(UnsupportedInterfaceError, match=r"'pose'.*joint_trajectory, forward_command, joint_state"):
        command_type(PAIR.model_copy(update={"commands": commands}))
