# SPDX-License-Identifier: Apache-2.0
"""What a node does where the machine gives less than it should."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

sys.path.append(str(Path(__file__).parent))

import scripted_graph
from paced_time import PacedTime
from scripted_graph import ScriptedNode, graph_of, leave, take_up, went_on

NO_SHARED_MEMORY = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh")


def require_mounts():
    if subprocess.run([*NO_SHARED_MEMORY, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")


class WithoutSharedMemory(ScriptedNode):
    """Sees a /dev/shm in which nothing can be made."""

    command = (*NO_SHARED_MEMORY, *ScriptedNode.command)


def test_without_shared_memory_a_node_is_reached_by_udp(tmp_path_factory, monkeypatch):
    require_mounts()
    monkeypatch.setattr(scripted_graph, "ScriptedNode", WithoutSharedMemory)
    for graph in graph_of(tmp_path_factory, PacedTime()):
        begun = take_up(graph)
        graph.pair.wait_status("running")
        went_on(graph.pair)
        leave(graph, begun)
