# SPDX-License-Identifier: Apache-2.0
"""``/xvla`` asks a policy server in a process of its own, which is killed and comes back while the arm moves."""

import math
import re

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("aiohttp", reason="needs xvla_ros[serve]")

from node_probe import Probe
from node_process import SETTINGS, NodeProcess, ServerProcess, check_all
from paced_time import PacedTime
from scripted_graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, LOOKAHEAD
from stand_in_pair import ROBOT, STATUS_TOPIC, StandInPair

from xvla_ros.control.clock import LatencyWindow
from xvla_ros.evaluation.graph import policy_command, sim_command
from xvla_ros.nodes.policy.surroundings import _percentiles
from xvla_ros.robots import load_robot
from xvla_ros.types import NS

TOUCH = "touch the red cube"
MOVED = 0.15  # rad


@pytest.fixture
def server():
    made = ServerProcess()
    yield made
    made.kill()


@pytest.fixture
def pair(ros_domain):
    made = StandInPair(ros_domain, PacedTime())
    yield made
    made.close()


@pytest.fixture
def node_for(pair, ros_domain, tmp_path):
    """Starts the node: node_for(servers, **parameters)."""
    made = []

    def start(servers, **parameters):
        pace = {f"{ROBOT}.policy.waypoint_dt": pair.profile.policy.waypoint_dt}  # that of the policy that ships
        told = {"server": servers, "instruction": "touch the red cube", **pace, **parameters}
        node = NodeProcess(ros_domain, tmp_path, **told)
        made.append(node)
        pair.meet()
        return node

    yield start
    for node in made:
        node.kill()


def standing(pair):
    """Wait until both arms stand, and return where."""
    pair.pass_time(LOOKAHEAD + 0.1)
    before = {group: pair.position(group) for group in pair.arms}
    pair.pass_time(0.3)
    for group, where in before.items():
        np.testing.assert_allclose(pair.position(group), where, atol=1e-6)
    return before


def test_a_server_that_is_killed_while_the_arm_moves_and_comes_back(pair, node_for, server):
    node_for(server.url)
    assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
    pair.wait_status("running")
    chunks = pair.wait_chunks(3, robot=ROBOT)
    pair.wait_for(lambda: sends(pair.status) > 0, "a status that says what is sent")
    pair.wait_more("/diagnostics", 2)  # of which the second was made after these chunks
    assert float(diagnosed(pair, "answer_ms_p99")) >= min(chunk.inference_ms for chunk in chunks) > 0
    assert float(diagnosed(pair, "inference_ms_p50")) > 0, "of simulated time, which may go faster"
    statuses = pair.heard[STATUS_TOPIC]
    before = len(statuses)
    server.kill()
    killed = pair.now()

    def first():  # of its kind, however late this thread asks
        reason = "holding", "policy_unreachable"
        said = [each for each in statuses[before:] if (each.state, each.reason) == reason and server.url in each.detail]
        return said[0] if said else None

    held = pair.wait_for(first, "a hold as the server is gone")
    timing, chunk = pair.profile.timing, 30 * pair.profile.policy.waypoint_dt
    said = held.header.stamp.sec + held.header.stamp.nanosec / NS
    assert said - killed / NS < chunk * SETTINGS["smoothing.execute"] + timing.inference_timeout
    standing(pair)
    since = pair.now()
    again = ServerProcess(server.port)
    try:
        pair.wait_status("running")
        chunks = pair.wait_chunks(2, robot=ROBOT)
    finally:
        again.kill()
    stamps = [chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec for chunk in chunks]
    assert min(stamps) > since - 10**9, "seen after the hold"
    assert held.holds >= 1
    check_all(pair, {group: [message for _, message in sent] for group, sent in pair.commands.items()})


@pytest.mark.slow
def test_in_simulation_the_arm_rests_within_its_deadline_and_moves_when_the_server_is_back(ros_domain, server):
    """As a user has it: `xvla serve`, the node, the physics; the server is killed in the middle of a motion."""
    profile = load_robot(ROBOT)
    timing, policy = profile.timing, profile.policy
    probe = Probe(ros_domain, profile)
    node = policy_command(profile, server=server.url, instruction=TOUCH, sim_time=True, paced=True)
    try:
        probe.start(sim_command(profile, seed=7))
        probe.start(node)
        probe.wait(lambda: probe.state == "running", "a robot that runs")
        begun = probe.positions()
        probe.wait(lambda: np.abs(probe.positions() - begun).max() > MOVED, "a motion")
        assert probe.state == "running"
        server.kill()
        killed = probe.now()
        probe.wait(lambda: probe.state == "holding", "a robot that holds")
        assert probe.status.reason == "policy_unreachable" and server.url in probe.status.detail
        # the next question is due within a chunk, its answer within the timeout; what was sent ends at the lookahead
        chunk = round((policy.first_waypoint_offset + 30 * policy.waypoint_dt) * NS)
        due = killed + chunk + round((timing.inference_timeout + timing.lookahead) * NS)
        probe.wait(lambda: probe.now() > due + NS // 2, "half a second of rest")
        assert probe.moved_last() < due
        rested = probe.positions()
        again = ServerProcess(server.port)
        try:
            probe.wait(lambda: probe.state == "running", "a robot that runs again")
            probe.instruct("touch the blue cube")
            probe.wait(lambda: np.abs(probe.positions() - rested).max() > MOVED, "a motion")
        finally:
            again.kill()
    finally:
        probe.close()


def test_a_robot_that_changes_between_two_activations_is_told_to_the_server(pair, node_for, server):
    """The asks would have the deadline, and the views that are needed, of the robot as it was at first."""
    node_for(server.url)
    assert pair.make(CONFIGURE)
    assert all(result.successful for result in pair.set(**{f"{ROBOT}__timing__inference_timeout": 1.5}))
    assert pair.make(ACTIVATE)
    pair.wait_status("running")
    assert sum("connecting to" in line for line in pair.log()) == 2


def test_of_two_servers_one_may_die(pair, node_for, server):
    other = ServerProcess()
    try:
        node_for(f"{server.url},{other.url}")
        assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
        pair.wait_status("running")
        pair.wait_chunks(2, robot=ROBOT)
        for each in (server, other):
            if each.url in diagnosed(pair, "server"):
                each.kill()
                break
        pair.wait_chunks(3, robot=ROBOT)
        pair.wait_status("running")
        assert pair.make(DEACTIVATE) and pair.make(CLEANUP)
    finally:
        other.kill()


def sends(status):
    """kB/s that a status says to be sent to the policy server."""
    found = re.fullmatch(r"sends (\d+) kB/s to the policy server", status.detail)
    return int(found[1]) if found else 0


def diagnosed(pair, key):
    """The newest value of a key in the diagnostics that is something: neither empty nor zero nor no number."""

    def found():
        for message in reversed(pair.heard["/diagnostics"]):
            for status in message.status:
                for value in status.values:
                    if value.key == key and value.value not in ("", "0.0", "nan"):
                        return value.value
        return ""

    return pair.wait_for(found, f"{key} in the diagnostics")


def wait_log(pair, text):
    pair.wait_for(lambda: any(text in line for line in pair.log()), f"a line with {text!r}")


def test_a_server_that_is_not_there_or_beside_a_checkpoint_is_refused_by_name(pair, node_for, server):
    node_for("ws://127.0.0.1:9", paced=False)
    assert not pair.make(CONFIGURE)
    wait_log(pair, "no policy server answers: ws://127.0.0.1:9")
    assert all(result.successful for result in pair.set(server=server.url, checkpoint="mine"))
    assert not pair.make(CONFIGURE)
    wait_log(pair, "checkpoint is mine and server")
    assert all(result.successful for result in pair.set(checkpoint=""))
    assert pair.make(CONFIGURE)


def test_times_before_the_first_are_no_numbers():
    window = LatencyWindow()
    assert set(_percentiles("overhead_ms", window.percentiles())) == {
        f"overhead_ms_{each}" for each in ("p50", "p95", "p99", "max")
    }
    assert all(math.isnan(value) for value in _percentiles("overhead_ms", window.percentiles()).values())
    window.add(2.0)
    assert set(_percentiles("overhead_ms", window.percentiles()).values()) == {2.0}
