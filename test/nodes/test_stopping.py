# SPDX-License-Identifier: Apache-2.0
"""Nodes that lead, watch and play end quietly by a signal, whatever they are doing when it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from xvla_ros.ros_env import child_environment

DEADLINE = 240.0  # ends what hangs

# The signal arrives while the first outcome is turned into Python.
STOPPED = """
import os, sys
from xvla_ros.msg import EpisodeOutcome

made = EpisodeOutcome.__init__
def interrupted(self, *args, **kwargs):
    made(self, *args, **kwargs)
    if sys._getframe(1).f_code.co_name in ("_take_subscription", "deserialize_message"):
        os.kill(os.getpid(), int(sys.argv[2]))
EpisodeOutcome.__init__ = interrupted

from importlib import import_module
sys.exit(import_module("xvla_ros.nodes." + sys.argv[1]).main(["node", *sys.argv[3:]]))
"""

PUBLISHER = """
import time
import rclpy
from rosgraph_msgs.msg import Clock
from xvla_ros.msg import EpisodeOutcome
from xvla_ros.nodes import qos
rclpy.init()
node = rclpy.create_node("sim")
outcome = node.create_publisher(EpisodeOutcome, "/sim/so101/outcome", qos.LATCHED)
clock = node.create_publisher(Clock, "/clock", qos.SENSOR)
while True:
    clock.publish(Clock(clock=node.get_clock().now().to_msg()))
    outcome.publish(EpisodeOutcome(robot="so101"))
    time.sleep(0.05)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("node", "code"), [("evaluate_node", 1), ("watch_node", 0)])
def test_a_signal_while_a_message_is_read_ends_a_node_quietly(
    node: str, code: int, signum: signal.Signals, tmp_path: Path, ros_domain: int
) -> None:
    environment = child_environment() | {"ROS_DOMAIN_ID": str(ros_domain)}
    values = {
        "profile": "so101",
        "robot": "so101",
        "task": "touch",
        "episodes": 1,
        "seed": 0,
        "variation": 1.0,
        "file": str(tmp_path / "watched.mcap"),
    }
    parameters = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
    publisher = subprocess.Popen([sys.executable, "-c", PUBLISHER], env=environment)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", STOPPED, node, str(int(signum)), "--ros-args", *parameters],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        publisher.kill()
        publisher.wait()
    told = [line for line in ended.stderr.splitlines() if not line.startswith("[INFO]")]  # of what has not come yet
    assert told == [] and ended.returncode == code, ended.stdout + ended.stderr
