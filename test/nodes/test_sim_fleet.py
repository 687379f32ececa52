# SPDX-License-Identifier: Apache-2.0
"""Several simulated robots in one node: which, on what command line, and on one clock."""

import json
import signal
import subprocess
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.graph import choose_profiles, policy_command, sim_command
from xvla_ros.nodes.sim import simulated_robot
from xvla_ros.robots import ProfileError
from xvla_ros.ros_env import child_environment

FLEET = "/**: {ros__parameters: {arm_a: {like: so101, namespace: /a}, arm_b: {like: so101, namespace: /b}}}"
DEADLINE = 240.0  # ends what hangs


@pytest.fixture
def fleet(tmp_path):
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return file


def test_robots_are_named_by_names_and_files(fleet):
    names = [profile.name for profile in choose_profiles(f"widowx, {fleet}")]
    assert names == ["widowx", "arm_a", "arm_b"]
    with pytest.raises(SetupError, match="expected names or files"):
        choose_profiles(" , ")
    with pytest.raises(ProfileError, match="'widowks' is unknown"):
        choose_profiles("widowks,agibot")


def test_the_command_lines_name_every_robot_and_each_file_once(fleet):
    profiles = choose_profiles(str(fleet))
    policy = policy_command(*profiles, sim_time=True)
    assert 'robots:=["arm_a", "arm_b"]' in policy and policy.count("--params-file") == 1
    sim = sim_command(*profiles, seed=1)
    assert 'robot:="arm_a,arm_b"' in sim and f'profile:="{fleet}"' in sim


def test_robots_that_would_publish_on_one_topic_are_not_simulated_together(fleet):
    assert [each.name for each in simulated_robot.choose_profiles("arm_b,arm_a", str(fleet))] == ["arm_b", "arm_a"]
    with pytest.raises(SetupError, match=r"so101_bimanual and widowx both use /front/image_raw.*namespace"):
        simulated_robot.choose_profiles("so101_bimanual,widowx")
    with pytest.raises(SetupError, match="expected one of arm_a, arm_b"):
        simulated_robot.choose_profiles("arm_c", str(fleet))


def test_two_arms_are_simulated_on_one_clock(fleet, ros_domain, tmp_path):
    stats = tmp_path / "stats.json"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = rclpy.create_node("probe", context=context)
    heard = {name: [] for name in "ab"}
    for name, stamps in heard.items():
        node.create_subscription(
            JointState,
            f"/{name}/follower/joint_states",
            lambda message, stamps=stamps: stamps.append((message.header.stamp.sec, message.header.stamp.nanosec)),
            100,
        )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    process = subprocess.Popen(
        sim_command(*choose_profiles(str(fleet)), seed=1, stats=stats),
        env=child_environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while not len(set(heard["a"]) & set(heard["b"])) >= 5:
            assert time.monotonic() < deadline and process.poll() is None, heard
            executor.spin_once(timeout_sec=0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    said = json.loads(stats.read_text())
    assert [robot["robot"] for robot in said["robots"]] == ["arm_a", "arm_b"]
    assert set(said["robots"][0]["frames_sent"]) == {"front", "wrist"} and said["sim_time_s"] > 0.0
