# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from xvla_ros import ros_env


def test_prepare_fills_in_what_is_missing():
    environment: dict[str, str] = {}
    ros_env.prepare(environment)
    assert environment["AMENT_PREFIX_PATH"] == sys.prefix
    assert environment["ROS_LOG_DIR"]
    (variable,) = set(ros_env.DDS_PROFILE_VARIABLES.values()) & set(environment)
    assert Path(environment[variable]).is_file()


@pytest.mark.parametrize(("package", "variable"), ros_env.DDS_PROFILE_VARIABLES.items())
def test_each_distribution_gets_the_variable_that_its_dds_reads(tmp_path, package, variable):
    (tmp_path / "share" / package).mkdir(parents=True)
    environment = {"AMENT_PREFIX_PATH": f"{tmp_path / 'workspace'}:{tmp_path}", "HOME": str(tmp_path)}
    ros_env.prepare(environment)
    assert set(ros_env.DDS_PROFILE_VARIABLES.values()) & set(environment) == {variable}


def test_prepare_keeps_what_the_user_set(tmp_path):
    chosen = {
        "AMENT_PREFIX_PATH": "/opt/ros/jazzy",
        "HOME": str(tmp_path),
        "FASTDDS_DEFAULT_PROFILES_FILE": "/etc/dds.xml",
    }
    environment = dict(chosen)
    ros_env.prepare(environment)
    assert environment == chosen


def test_the_users_choice_of_transports_keeps_our_profile_out():
    environment = {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}
    ros_env.prepare(environment)
    assert not set(ros_env.DDS_PROFILE_VARIABLES.values()) & set(environment)


@pytest.mark.parametrize(
    ("first", "environment"),
    [("from xvla_ros import ros_env\nros_env.prepare()", lambda: None), ("", ros_env.child_environment)],
    ids=["prepared", "child"],
)
def test_a_crash_in_a_library_says_where_it_happened(first, environment):
    code = f"{first}\nimport ctypes\nctypes.string_at(0)\n"
    crashed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert crashed.returncode < 0
    assert "Segmentation fault" in crashed.stderr and "string_at" in crashed.stderr


def test_a_child_of_another_environment_finds_its_own_libraries(tmp_path, monkeypatch):
    monkeypatch.setenv("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{sys.prefix}/lib")
    monkeypatch.setenv("AMENT_PREFIX_PATH", sys.prefix)
    other = ros_env.child_environment(tmp_path / "bin" / "python")
    assert not {"_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "AMENT_PREFIX_PATH"} & set(other)
    own = ros_env.child_environment()
    assert own["LD_LIBRARY_PATH"] == f"{sys.prefix}/lib"


def test_the_dds_profile_reserves_32_megabytes():
    root = ET.parse(ros_env.dds_profile()).getroot()
    (size,) = root.iterfind(".//{*}segment_size")
    assert int(size.text or "") == 32 * 2**20


def test_messages_cross_from_process_to_process(ros_domain):
    """Both messages arrive whole, and a 640×480 image fits through the profile's transport."""
    pytest.importorskip("rclpy", reason="needs ROS 2: pip install '.[ros]'")
    listener, talker = start(LISTENER), start(TALKER)
    try:
        heard, _ = listener.communicate(timeout=300)
        said, _ = talker.communicate(timeout=300)
    finally:
        listener.kill()
        talker.kill()
    assert (listener.returncode, talker.returncode) == (0, 0), heard + said
    assert "robot=so101 times=[0.1, 0.25] actions=[1.0, 2.0, 3.0, 4.0] seed=7" in heard
    assert "state=holding reason=camera_stale" in heard
    assert "image=921600" in heard


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=ros_env.child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


LISTENER = """
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from xvla_ros.msg import ActionChunk, PolicyStatus

    rclpy.init()
    node = rclpy.create_node("listener")
    heard = {}
    node.create_subscription(ActionChunk, "chunk", lambda m: heard.update(chunk=m), 10)
    node.create_subscription(PolicyStatus, "status", lambda m: heard.update(status=m), 10)
    node.create_subscription(Image, "image", lambda m: heard.update(image=m), qos_profile_sensor_data)
    while len(heard) < 3:
        rclpy.spin_once(node, timeout_sec=1.0)
    c, s = heard["chunk"], heard["status"]
    print(f"robot={c.robot} times={list(c.times)} actions={list(c.actions)} seed={c.seed}")
    print(f"state={s.state} reason={s.reason}")
    print(f"image={len(heard['image'].data)}")
"""

TALKER = """
    import array
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from xvla_ros.msg import ActionChunk, PolicyStatus

    rclpy.init()
    node = rclpy.create_node("talker")
    publishers = [
        node.create_publisher(ActionChunk, "chunk", 10),
        node.create_publisher(PolicyStatus, "status", 10),
        node.create_publisher(Image, "image", qos_profile_sensor_data),
    ]
    messages = [
        ActionChunk(robot="so101", times=[0.1, 0.25], waypoints=2, width=2, actions=[1.0, 2.0, 3.0, 4.0], seed=7),
        PolicyStatus(state=PolicyStatus.HOLDING, reason=PolicyStatus.CAMERA_STALE),
        Image(width=640, height=480, encoding="rgb8", step=1920, data=array.array("B", bytes(640 * 480 * 3))),
    ]
    while not all(p.get_subscription_count() for p in publishers):
        rclpy.spin_once(node, timeout_sec=0.05)
    while any(p.get_subscription_count() for p in publishers):  # best effort may lose one: until the listener is gone
        for publisher, message in zip(publishers, messages):
            publisher.publish(message)
        rclpy.spin_once(node, timeout_sec=0.05)
"""


def test_without_a_home_the_logs_go_to_a_temporary_folder(ros_domain):
    pytest.importorskip("rclpy", reason="needs ROS 2: pip install '.[ros]'")
    code = "from xvla_ros.ros_env import prepare; prepare(); import rclpy; rclpy.init(); rclpy.create_node('homeless')"
    bare = {"PATH": os.environ["PATH"], "ROS_DOMAIN_ID": str(ros_domain)}
    result = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


READ_ONLY = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'


def test_with_a_read_only_home_the_logs_go_to_a_temporary_folder_which_is_said(tmp_path, ros_domain):
    pytest.importorskip("rclpy", reason="needs ROS 2: pip install '.[ros]'")
    read_only = ["unshare", "-m", "sh", "-c", READ_ONLY, str(tmp_path)]
    if subprocess.run([*read_only, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    code = (
        "from xvla_ros.ros_env import prepare; prepare(); import os, rclpy; rclpy.init(); "
        "rclpy.create_node('homeless'); print(os.environ['ROS_LOG_DIR'])"
    )
    given = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ROS_DOMAIN_ID": str(ros_domain)}
    result = subprocess.run(
        [*read_only, sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    instead = f"ROS writes its logs to {result.stdout.strip()} instead"
    assert f"{tmp_path}/.ros/log cannot be written: {instead}" in result.stderr


@pytest.mark.parametrize("obstacle", ["link", "file", "open to all"])
def test_a_temporary_folder_that_others_may_have_made_is_not_used(tmp_path, monkeypatch, obstacle):
    monkeypatch.setattr(ros_env.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ros_env.tempfile, "tempdir", str(tmp_path))
    theirs = tmp_path / f"xvla_ros_log_{os.getuid()}"
    if obstacle == "link":
        theirs.symlink_to(tmp_path)
    elif obstacle == "file":
        theirs.touch()
    else:
        theirs.mkdir()
        theirs.chmod(0o777)
    environment: dict[str, str] = {}
    ros_env.prepare(environment)
    assert environment["ROS_LOG_DIR"] != str(theirs)
    assert Path(environment["ROS_LOG_DIR"]).stat().st_mode & 0o777 == 0o700


def test_the_temporary_folder_of_logs_is_the_same_at_every_start(tmp_path, monkeypatch):
    monkeypatch.setattr(ros_env.tempfile, "gettempdir", lambda: str(tmp_path))
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    ros_env.prepare(first)
    ros_env.prepare(second)
    assert first["ROS_LOG_DIR"] == second["ROS_LOG_DIR"] == str(tmp_path / f"xvla_ros_log_{os.getuid()}")


@pytest.mark.parametrize(
    ("given", "line", "warned"),
    [
        ({}, "ROS domain 0, the default middleware, reachable from the whole local network", True),
        (
            {"ROS_DOMAIN_ID": "7", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "RMW_IMPLEMENTATION": "rmw_zenoh_cpp"},
            "ROS domain 7, rmw_zenoh_cpp, reachable from this machine",
            False,
        ),
        ({"ROS_LOCALHOST_ONLY": "1"}, "ROS domain 0, the default middleware, reachable from this machine", False),
        (
            {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "10.0.0.2"},
            "ROS domain 0, the default middleware, reachable from this machine and 10.0.0.2",
            True,
        ),
        (
            {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"},
            "ROS domain 0, the default middleware, reachable from the whole local network, with keys of SROS 2",
            False,
        ),
        (
            {"ROS_SECURITY_ENABLE": "true"},
            "ROS domain 0, the default middleware, reachable from the whole local network",
            True,
        ),
    ],
)
def test_who_can_take_part_is_said_and_warned_of(given, line, warned):
    said, warning = ros_env.reach(given)
    assert said == line
    assert bool(warning) == warned
