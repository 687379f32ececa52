# SPDX-License-Identifier: Apache-2.0
"""A benchmark's arm over ROS topics: the node ``/xvla`` in its own process leads an arm that goes where it is told."""

from __future__ import annotations

import os
import signal
from functools import partial

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("aiohttp", reason="needs xvla_ros[serve]")
pytest.importorskip("pinocchio")

from xvla_ros.commands import run
from xvla_ros.commands.evaluate import Evaluate
from xvla_ros.errors import EvaluationError, Interrupted
from xvla_ros.evaluation.processes import StopTimes, Supervisor
from xvla_ros.evaluation.suites.control import described_at, profile_for
from xvla_ros.evaluation.suites.drivers import ROBOT, embodiment_of, start_of
from xvla_ros.evaluation.suites.over_ros import policy_over_ros, served_script
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.kinematics import Poses
from xvla_ros.robots.rotations import axis_angle_to_matrix
from xvla_ros.robots.tools import tool_arms
from xvla_ros.simulation.suites.protocols import XVLA
from xvla_ros.simulation.suites.suite import Sight, SuiteTask
from xvla_ros.types import NS, ActionChunk

PROTOCOL = XVLA.changed(["pixels=32"])
START = np.array([0, -0.161, 0, -2.4446, 0, 2.2268, 0.7854])
STEP = np.array([0.004, 0.0, -0.003])
FLOOR, TABLE = np.array([-0.6, 0.0, 0.0]), np.array([-0.66, 0.0, 0.912])
OPEN_FINGER = 0.04
LIMIT = 120.0  # s, only ends a hang


class FaithfulArm:
    """An arm on a base that is at once where it was told to be; its fingers stay as they are."""

    def __init__(self, base):
        profile = profile_for(PROTOCOL, embodiment_of(PROTOCOL))
        self.base, self.joints = base, START
        arms = tool_arms(profile, described_at(base))
        self._encoder, self._inverse = StateEncoder(profile, arms), arms["arm"].inverse

    def sight(self):
        pose = self._encoder.tool_poses(np.append(self.joints, OPEN_FINGER))["arm"]
        fingers = np.array([OPEN_FINGER, -OPEN_FINGER])
        settling = np.tile(np.append(self.joints, fingers), (11, 1))
        return Sight({}, pose.positions, pose.rotations, pose.positions, self.joints, fingers, self.base, settling)

    def go(self, action):
        target = Poses(action[:3].astype(np.float64), axis_angle_to_matrix(action[3:6]))
        self.joints = self._inverse.solve(target, self.joints).positions


def look():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[0, 0] = 200
    return {"agentview": picture, "robot0_eye_in_hand": picture.copy()}


class Script:
    """Waypoints that go on from the state by ``STEP`` each, and close; to the word "fail" it fails."""

    def __init__(self):
        self.asked = []

    def predict(self, observations, prefixes):
        (seen,) = observations
        if seen.instruction == "fail":
            raise ValueError("no such thing")
        self.asked.append(seen)
        rows = np.zeros((30, 20), np.float32)
        rows[:, :3] = seen.state[:3] + np.arange(1, 31)[:, None] * STEP
        rows[:, 3:9], rows[:, 9] = seen.state[3:9], 1.0
        return [ActionChunk(ROBOT, 3, "ee6d", seen.instruction, seen.stamp, np.arange(1, 31) / 20, rows, 2.0, 0)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The policy node behind a script: the driver, the script, what the node said of its computing, and its log."""
    script, said, logs = Script(), {}, tmp_path_factory.mktemp("logs")
    embodiment = embodiment_of(PROTOCOL)
    with (
        served_script(script.predict, embodiment) as server,
        policy_over_ros(PROTOCOL, embodiment, logs, seed=0, server=server, said=said) as driver_of,
    ):
        yield driver_of(look), script, logs / "policy.log"
    assert said["dtype"] == "float32"


def drive(driver, arm, task, episode, steps):
    """Return what the arm was told at each step, float64 [T, 7]."""
    driver.begin(task, episode)
    told = []
    for step in range(steps):
        told.append(driver.actions(arm.sight(), step)[0])
        arm.go(told[-1])
    return np.array(told, dtype=np.float64)


def test_waypoints_become_poses_one_a_control_step(graph):
    driver, script, log = graph
    task, script.asked = SuiteTask(2, "task", "go on", 50), []
    arm = FaithfulArm(TABLE)
    start = arm.sight()
    told = drive(driver, arm, task, 1, 50)
    # it begins where the arm is
    np.testing.assert_allclose(told[0, :3], start.position, atol=1.1 * np.linalg.norm(STEP))
    # in motion each pose is one waypoint further; a step whose command came late is made up for by the next
    np.testing.assert_allclose(told[-1, :3] - told[30, :3], 19 * STEP, atol=2.1 * np.linalg.norm(STEP))
    np.testing.assert_allclose(axis_angle_to_matrix(told[-1, 3:6]), start.rotation, atol=2e-3)
    assert (told[40:, 6] == 1.0).all()
    asked = [seen for seen in script.asked if seen.stamp]  # without those of the warm-up
    assert len(asked) >= driver.chunks == len(driver.inference_ms) >= 2
    assert {seen.instruction for seen in asked} == {"go on"}
    assert start_of(task, 1) <= asked[0].stamp and asked[-1].stamp <= start_of(task, 1) + 50 * NS // 20
    # the scene's picture is turned, the wrist's is left
    assert asked[0].images["image"][-1, -1].min() > 150 > asked[0].images["image2"][-1, -1].max()
    assert asked[0].images["image2"][0, 0].min() > 150 > asked[0].images["image"][0, 0].max()
    assert "[xvla]: inactive → active" in log.read_text()


def test_the_next_episode_begins_anew_and_another_mount_is_heard(graph):
    driver, script, log = graph
    before = log.read_text().count("kinematics of")
    for episode, (base, words) in enumerate([(FLOOR, "go on"), (FLOOR, "go further")]):
        script.asked = []
        arm = FaithfulArm(base)
        start = arm.sight().position
        told = drive(driver, arm, SuiteTask(3, "task", words, 50), episode, 30)
        np.testing.assert_allclose(told[0, :3], start, atol=1.1 * np.linalg.norm(STEP))
        assert np.linalg.norm(told[-1, :3] - start) > 2 * np.linalg.norm(STEP)
        asked = [seen for seen in script.asked if seen.stamp]
        assert asked[0].instruction == words
        np.testing.assert_allclose(asked[0].state[:3], start, atol=1e-4)
    # configured anew once, for the other base; that the arm is elsewhere at once is no fault where nobody leads it
    said = log.read_text()
    assert said.count("kinematics of") == before + 1
    assert "leaps" not in said


def test_a_policy_that_fails_is_named(graph):
    driver, _, _ = graph
    with pytest.raises(EvaluationError, match=r"the policy failed at step \d+: .*no such thing"):
        drive(driver, FaithfulArm(FLOOR), SuiteTask(4, "task", "fail", 50), 0, 60)


def in_a_graph(tmp_path, act):
    """Bring the graph up for one episode; ``act`` is called at its step 5."""
    with (
        served_script(Script().predict, embodiment_of(PROTOCOL)) as server,
        policy_over_ros(PROTOCOL, embodiment_of(PROTOCOL), tmp_path, seed=0, server=server) as driver_of,
    ):
        driver, arm = driver_of(look), FaithfulArm(FLOOR)
        driver.begin(SuiteTask(0, "task", "go on", 50), 0)
        for step in range(60):
            if step == 5:
                act(tmp_path)
            arm.go(driver.actions(arm.sight(), step)[0])


def test_a_signal_ends_it(tmp_path, monkeypatch):
    """In good order: the policy node has the time that it needs on a busy machine."""
    patient = partial(Supervisor, stop_times=StopTimes(LIMIT, LIMIT))
    monkeypatch.setattr("xvla_ros.evaluation.suites.over_ros.Supervisor", patient)
    with pytest.raises(Interrupted):
        in_a_graph(tmp_path, lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert "finalized" in (tmp_path / "policy.log").read_text()


def test_several_simulators_are_refused(tmp_path, capsys):
    options = Evaluate(suite="libero_object", expert=True, through="ros", jobs=2, output=str(tmp_path))
    assert run(options, "xvla evaluate") == 1
    assert "--jobs is 2, and --through ros has one policy node with one arm; expected 1" in capsys.readouterr().err
