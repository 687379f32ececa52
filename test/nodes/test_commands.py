# SPDX-License-Identifier: Apache-2.0
"""What leaves the node for each command interface."""

import numpy as np
import pytest
from rclpy.serialization import serialize_message

from xvla_ros.control.motion import CommandWindow, MotionState
from xvla_ros.recordings.cdr import read_command
from xvla_ros.robots import Profile, ProfileError, load_profile
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.rotations import rpy_to_matrix

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.nodes.policy.commands import command_messages, command_type

PAIR = load_profile("so101_bimanual_split")["so101_bimanual_split"]
WIDOWX = load_profile("widowx")["widowx"]
ARM = ["shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_pitch_joint", "wrist_roll_joint"]


def window(rows):
    rows = np.asarray(rows, dtype=float)
    rest = np.zeros_like(rows)
    return CommandWindow(
        stamp=3_000_000_007,
        start=MotionState.at_rest(rest[0]),
        times=np.array([0.05, 0.1]),
        positions=rows,
        velocities=rest,
        accelerations=rest,
        limited=0,
    )


def sent_by(profile, rows):
    sent = command_messages(profile, window(rows), StateEncoder(profile))
    assert list(sent) == list(profile.commands.groups)
    assert all(type(message) is command_type(profile, group) for group, message in sent.items())
    return sent


PAIR_ROWS = np.arange(24.0).reshape(2, 12)


def changed(profile, **commands):
    mapping = profile.to_mapping()
    mapping["commands"] |= commands
    return Profile.from_mapping(profile.name, mapping)


def servo(**groups):
    """WidowX by poses."""
    posed = {
        "arm": {"topic": "/servo_node/pose_target_cmds", "tool": "arm"},
        "gripper": {"topic": "/gripper/joint_trajectory", "joints": ["gripper"]},
    }
    return changed(WIDOWX, interface="pose", **(posed | groups))


def test_a_trajectory_carries_the_window_of_each_groups_joints():
    sent = sent_by(PAIR, PAIR_ROWS)
    assert all(type(message) is JointTrajectory for message in sent.values())
    assert list(sent["left_arm"].joint_names) == ARM
    assert [list(point.positions) for point in sent["right_gripper"].points] == [[11.0], [23.0]]


def test_setpoints_are_the_windows_first_point():
    sent = sent_by(changed(PAIR, interface="forward_command"), PAIR_ROWS)
    assert all(type(message) is Float64MultiArray for message in sent.values())
    assert list(sent["right_arm"].data) == [6.0, 7.0, 8.0, 9.0, 10.0]
    sent = sent_by(changed(PAIR, interface="joint_state"), PAIR_ROWS)
    assert all(type(message) is JointState for message in sent.values())
    assert (list(sent["left_arm"].name), list(sent["left_arm"].position)) == (ARM, [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (sent["left_arm"].header.stamp.sec, sent["left_arm"].header.stamp.nanosec) == (3, 7)
    assert not sent["left_arm"].velocity


def test_a_group_may_have_an_interface_of_its_own():
    groups = {name: group for name, group in PAIR.to_mapping()["commands"].items() if isinstance(group, dict)}
    groups["left_gripper"]["interface"] = "gripper_command"
    groups["right_arm"]["interface"] = "forward_command"
    profile = changed(PAIR, **groups)
    sent = command_messages(profile, window(PAIR_ROWS), StateEncoder(profile))
    assert type(sent["left_arm"]) is JointTrajectory and sent["left_gripper"] == 5.0
    assert list(sent["right_arm"].data) == [6.0, 7.0, 8.0, 9.0, 10.0]
    assert command_type(profile, "left_gripper") is Float64MultiArray
    assert read_back(profile, "left_gripper", Float64MultiArray(data=[5.0])) == [(PAIR.timing.lead, [5.0])]


def test_own_interfaces_that_do_not_fit_are_named():
    left = PAIR.to_mapping()["commands"]["left_arm"]
    with pytest.raises(ProfileError, match="gripper_action commands one gripper joint, and the group has 5"):
        changed(PAIR, left_arm=left | {"interface": "gripper_action"})
    with pytest.raises(ProfileError, match="commands the pose of tool 'arm', which joint_state does not"):
        servo(arm={"topic": "/a", "tool": "arm", "interface": "joint_state"})


def test_a_pose_is_that_of_the_tool_at_the_windows_first_point():
    """By the figures of the vendor's URDF: hand-computed where the arm lies straight, and turned about its waist."""
    rows = np.zeros((2, 7))
    rows[0, 0], rows[:, 6] = 0.5, [0.02, 0.03]
    sent = sent_by(servo(), rows)
    pose = sent["arm"]
    assert type(pose) is PoseStamped and pose.header.frame_id == "wx250s/base_link"
    assert (pose.header.stamp.sec, pose.header.stamp.nanosec) == (3, 7)
    place = pose.pose.position
    np.testing.assert_allclose(
        [place.x, place.y, place.z], rpy_to_matrix((0, 0, 0.5)) @ [0.458325, 0.0, 0.36065], atol=1e-6
    )
    turn = pose.pose.orientation
    np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], [0, 0, np.sin(0.25), np.cos(0.25)], atol=1e-9)
    gripper = sent["gripper"]
    assert type(gripper) is JointTrajectory and list(gripper.joint_names) == ["left_finger"]
    assert [list(point.positions) for point in gripper.points] == [[0.02], [0.03]]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"arm": {"topic": "/a", "tool": "arm", "joints": ["gripper"]}}, "both a tool and joints"),
        ({"gripper": {"topic": "/g"}}, "neither a tool nor joints"),
        ({"arm": {"topic": "/a", "tool": "am"}}, "did you mean 'arm'"),
        ({"gripper": {"topic": "/g", "joints": ["elbow"]}}, "is not the joint of a gripper"),
        ({"gripper": {"topic": "/g", "tool": "arm"}}, "is also commanded by group 'arm'"),
    ],
)
def test_groups_that_a_servo_cannot_be_given_are_named(groups, words):
    with pytest.raises(ProfileError, match=words):
        servo(**groups)


def test_poses_that_would_come_too_rarely_are_named():
    mapping = servo().to_mapping()
    mapping["timing"] |= {"command_rate": 8.0}
    with pytest.raises(ProfileError, match="moveit_servo stops"):
        Profile.from_mapping("widowx", mapping)


def read_back(profile, group, message):
    """For each point (s after receipt, positions), as a bag is read."""
    found = read_command(profile, group, serialize_message(message))
    return list(zip((found.times / 1e9).tolist(), found.positions.tolist(), strict=True))


def test_what_was_commanded_is_read_back():
    trajectory = read_back(PAIR, "left_arm", sent_by(PAIR, PAIR_ROWS)["left_arm"])
    assert trajectory == [(0.05, [0.0, 1.0, 2.0, 3.0, 4.0]), (0.1, [12.0, 13.0, 14.0, 15.0, 16.0])]
    for interface in ("forward_command", "joint_state"):
        profile = changed(PAIR, interface=interface)
        setpoint = read_back(profile, "left_arm", sent_by(profile, PAIR_ROWS)["left_arm"])
        assert setpoint == [(PAIR.timing.lead, [0.0, 1.0, 2.0, 3.0, 4.0])]
