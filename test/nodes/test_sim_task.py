# SPDX-License-Identifier: Apache-2.0
"""Tasks in the simulation node: a reset begins an episode, the outcome topic tells of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from xvla_ros import ros_env
from xvla_ros.robots import load_profile
from xvla_ros.simulation.tasks import load_task
from xvla_ros.simulation.world import World

ros_env.prepare()
rclpy = pytest.importorskip("rclpy")
pytest.importorskip("pinocchio")

from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from xvla_ros.msg import EpisodeOutcome  # noqa: E402

ROBOT = "widowx"
LIMIT = 240.0  # ends what hangs
CONTROLLERS = {
    "arm_controller": ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"],
    "gripper_controller": ["left_finger"],
}
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Graph:
    """A simulation in a process of its own, and what a node of the test's hears of it."""

    def __init__(self, domain):
        environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        values = {"robot": ROBOT, "image_width": 16, "image_height": 16, "task": "touch", "seed": 4}
        arguments = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xvla_ros.nodes.sim_node", "--ros-args", *arguments], env=environment
        )
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("probe", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.outcome = None
        self.node.create_subscription(EpisodeOutcome, f"/sim/{ROBOT}/outcome", self._hear, LATCHED)
        self.controllers = {
            topic: (self.node.create_publisher(JointTrajectory, f"/wx250s/{topic}/joint_trajectory", 1), names)
            for topic, names in CONTROLLERS.items()
        }
        self.set = self.node.create_client(SetParameters, "/sim/set_parameters")
        self.trigger = self.node.create_client(Trigger, "/sim/reset")

    def _hear(self, message):
        self.outcome = message

    def wait(self, condition, what):
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; heard {self.outcome}"
            self.executor.spin_once(timeout_sec=0.1)

    def call(self, client, request):
        self.wait(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self.wait(future.done, client.srv_name)
        return future.result()

    def reset(self, **settings):
        """Sets parameters and resets; returns the answer, and once it succeeded the new episode is heard."""
        before = self.outcome.episode
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in settings.items()]
        changed = self.call(self.set, SetParameters.Request(parameters=parameters))
        assert all(result.successful for result in changed.results)
        answer = self.call(self.trigger, Trigger.Request())
        if answer.success and settings.get("task", "touch"):
            self.wait(lambda: self.outcome.episode > before, "the next episode")
        return answer

    def move(self, *postures):
        """Sends arm and gripper from posture to posture, a second each."""
        for publisher, names in self.controllers.values():
            self.wait(lambda publisher=publisher: publisher.get_subscription_count() > 0, publisher.topic_name)
            points = [JointTrajectoryPoint(positions=posture[: len(names)]) for posture in postures]
            postures = [posture[len(names) :] for posture in postures]
            for number, point in enumerate(points, start=1):
                point.time_from_start.sec = number
            publisher.publish(JointTrajectory(joint_names=names, points=points))

    def close(self):
        os.kill(self.process.pid, signal.SIGINT)
        assert self.process.wait(timeout=LIMIT) == 0
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def graph(ros_domain):
    made = Graph(ros_domain)
    yield made
    made.close()


def test_episodes_of_a_task_from_reset_to_outcome(graph):
    profile = load_profile(ROBOT)[ROBOT]
    task, world = load_task(profile, "touch"), World(profile)

    graph.wait(lambda: graph.outcome, "the first episode, which the parameters asked for")
    assert (graph.outcome.seed, graph.outcome.task, graph.outcome.over) == (4, "touch", False)

    answer = graph.reset(seed=11, variant=1)
    layout = task.reset(world, np.random.default_rng(11), 1)
    assert answer.success and answer.message == f"task touch, seed 11: {layout.instruction}"
    assert (graph.outcome.seed, graph.outcome.variant) == (11, 1)
    assert graph.outcome.instruction == layout.instruction
    assert (graph.outcome.success, graph.outcome.wrong, graph.outcome.elapsed) == (False, False, 0.0)

    plan = task.expert(world, layout).plan(world)
    over, at = (plan.legs[leg].posture.tolist() for leg in (0, -1))
    graph.move(over, over, at)  # at once: the episode's time goes on, however late this process is
    graph.wait(lambda: graph.outcome.over, "the touch")
    assert graph.outcome.success and not graph.outcome.wrong and graph.outcome.reason == EpisodeOutcome.DONE
    assert 2.0 < graph.outcome.elapsed < task.time_limit, "not while the arm is over the cube"

    refused = graph.reset(task="juggle")
    assert not refused.success
    assert "no task 'juggle' for robot 'widowx'; expected one of: touch, pick_place" in refused.message
    plain = graph.reset(task="", seed=3)
    assert plain.success and plain.message == "the arms are at home, the objects are placed by seed 3"
