# SPDX-License-Identifier: Apache-2.0
"""A simulated robot that the policy node drives over DDS, with any Python object as its policy.

The node runs in this process, ``sim_node`` in one of its own with cameras, joint states, trajectory controllers and
MuJoCo's physics. Where it is paced, simulated time waits for the node, and runs faster where the machine allows.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

from xvla_ros.control.pilot import Pilot
from xvla_ros.control.state import ControlStatus
from xvla_ros.evaluation.graph import THIS_MACHINE_ONLY, sim_command
from xvla_ros.evaluation.processes import Supervisor, free_domain
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.policy.node import PolicyNode
from xvla_ros.robots import Profile
from xvla_ros.ros_env import child_environment, prepare

Floats = NDArray[np.float64]

TIMEOUT_S = 600.0  # ends what hangs
FASTEST = 2.0  # times real time: faster, and pictures are old before they have been sent


class ScriptedNode(PolicyNode):
    """The policy node, with another policy in the place of a checkpoint."""

    def __init__(self, policy: Any, **kwargs: Any) -> None:
        self._scripted = policy
        super().__init__(**kwargs)

    def _load(self) -> Any:
        return self._scripted


class Recorder:
    """Measured joints over ROS time."""

    def __init__(self, node: Any, profile: Profile) -> None:
        self.newest = 0
        self._samples: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._order = profile.joints.policy_order
        for topic in dict.fromkeys(joint.topic for joint in profile.joints.ordered):
            names = {
                profile.joints.by_name[joint].name: joint
                for joint in profile.joints.policy_order
                if profile.joints.by_name[joint].topic == topic
            }
            node.create_subscription(JointState, topic, partial(self._hear, names), qos.EVENTS)

    def _hear(self, names: Mapping[str, str], message: JointState) -> None:
        stamp = messages.stamp_ns(message.header.stamp)
        for name, position in zip(message.name, message.position, strict=True):
            if name in names:
                self._samples[names[name]].append((stamp, position))
        self.newest = stamp

    def joints(self, columns: NDArray[np.intp]) -> tuple[NDArray[np.int64], Floats]:
        """Stamps [N] in ns and positions [N, J] of some joints, all of one topic."""
        samples = [self._samples[self._order[column]] for column in columns]
        length = min(map(len, samples))
        stamps = np.array([stamp for stamp, _ in samples[0][:length]], np.int64)
        return stamps, np.array([[position for _, position in sample[:length]] for sample in samples]).T


class DrivenRobot:
    """What is at hand while a policy drives a simulated robot.

    Attributes:
        node: the policy node, configured.
        recorder: of the joints.
        refused: commands that the controllers refused, known once all is over.
    """

    def __init__(self, node: ScriptedNode, recorder: Recorder, supervisor: Supervisor) -> None:
        self.node, self.recorder, self.refused = node, recorder, 0
        self._supervisor = supervisor

    @property
    def pilot(self) -> Pilot[Any] | None:
        """What runs between messages and commands, None for as long as an activation takes to make it anew."""
        links = self.node._links
        return links[0].pilot if links else None

    @property
    def status(self) -> ControlStatus:
        """Of the robot's motion."""
        return ControlStatus() if self.pilot is None else self.pilot.status

    def drive(self, done: Callable[[], bool], what: str) -> None:
        """Activate the node, and wait for ``done``, which is ``what`` in words."""
        change(self.node, Transition.TRANSITION_ACTIVATE)
        self._supervisor.wait_for(done, TIMEOUT_S, lambda: f"{what}; the robot is {self.status}")


@contextmanager
def driven_robot(profile: Profile, policy: Any, seed: int, *, paced: bool = False) -> Iterator[DrivenRobot]:
    """A simulation with ``seed`` and a policy node, configured; at the end deactivated and taken down."""
    prepare()
    with tempfile.TemporaryDirectory() as scratch, free_domain() as domain:
        stats = Path(scratch) / "sim.json"
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}
        with Supervisor(Path(scratch), environment, verbose=False) as supervisor:
            factor = FASTEST if paced else 1.0
            sim = supervisor.start("sim", sim_command(profile, seed=seed, stats=stats, factor=factor))
            with _policy_node(profile, policy, domain, paced) as (node, recorder):
                supervisor.wait_for(lambda: recorder.newest > 0, TIMEOUT_S, "joint states")
                change(node, Transition.TRANSITION_CONFIGURE)
                robot = DrivenRobot(node, recorder, supervisor)
                yield robot
                change(node, Transition.TRANSITION_DEACTIVATE)
            supervisor.stop(sim)
        robot.refused = sum(json.loads(stats.read_text(encoding="utf-8"))["rejected_count"].values())


@contextmanager
def _policy_node(profile: Profile, policy: Any, domain: int, paced: bool) -> Iterator[tuple[ScriptedNode, Recorder]]:
    """The node and the recorder, served by a thread."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    values = {"robots": [profile.name], "use_sim_time": True, "paced": paced, "instruction": "draw the line"}
    parameters = [Parameter(name, value=value) for name, value in values.items()]
    node = ScriptedNode(policy, context=context, parameter_overrides=parameters)
    policy.clock = node.get_clock()
    ears = rclpy.create_node("recorder", context=context)
    recorder = Recorder(ears, profile)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(ears)
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            with suppress(Exception):  # rclpy's, of many types: the node gives a topic back while it is looked at
                executor.spin_once(timeout_sec=0.1)

    spinning = threading.Thread(target=spin, daemon=True)
    spinning.start()
    try:
        yield node, recorder
        change(node, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    finally:
        ended.set()
        spinning.join()
        executor.shutdown()
        node.destroy_node()
        ears.destroy_node()
        rclpy.shutdown(context=context)


def change(node: ScriptedNode, transition: int) -> None:
    if not node.change_state(transition):
        raise RuntimeError(f"/xvla refused transition {transition}; its log says why")
