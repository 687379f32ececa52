# SPDX-License-Identifier: Apache-2.0
"""Two robots of different kinds on one node, in a process of its own, with a stand-in for both at the other end."""

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Log
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

sys.path.append(str(Path(__file__).parent))

from commanded_arm import CommandedArm
from paced_time import PacedTime, uncertainty

from xvla_ros import ros_env
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes import qos
from xvla_ros.resources import config_dir
from xvla_ros.robots import load_profile

from xvla_ros.msg import ActionChunk, PolicyStatus  # isort: skip

CONFIGURE, ACTIVATE = 1, 3
DEADLINE = 240.0  # ends what hangs
ASK_AGAIN = 2.0  # s; an answer sent before this side is known is lost
URDF = (config_dir() / "urdf" / "wx250s.urdf").read_text(encoding="utf-8")
FLEET = {"arm": {"like": "so101", "namespace": "/a"}, "widow": {"like": "widowx", "namespace": "/b/c"}}
SETTINGS = {
    "policy": {"waypoint_dt": 0.1, "denoising_steps": 2},
    "smoothing": {"execute": 0.3},
    "safety": {"first_step": 1.0},
    "timing": {"command_rate": 30.0},
}


class Robots:
    """The robots of some profiles, which follow what they are told: publishes what they see and hears the node."""

    def __init__(self, domain, profiles):
        self.profiles = profiles
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("robots", context=self.context)
        self.blind = set()
        self.heard = defaultdict(list)
        self.instructions, self.cameras, self.joints, self.arms = {}, {}, {}, {}
        self._change = self.node.create_client(ChangeState, "/xvla/change_state")
        self._state = self.node.create_client(GetState, "/xvla/get_state")
        for name, profile in profiles.items():
            self._connect(name, profile)
        self.node.create_subscription(Log, "/rosout", self.heard["log"].append, qos.EVENTS)
        self._description = self.node.create_publisher(String, "/b/c/robot_description", qos.LATCHED)
        self._description.publish(String(data=URDF))
        self.time = PacedTime()
        self.time.join(self.node, self._publish, 30)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self.time.start()

    def _connect(self, name, profile):
        create, subscribe = self.node.create_publisher, self.node.create_subscription
        self.instructions[name] = create(String, f"/xvla/{name}/instruction", qos.LATCHED)
        self.cameras[name] = [create(Image, camera.topic, qos.SENSOR) for camera in profile.cameras.by_name.values()]
        [topic] = {joint.topic for joint in profile.joints.ordered}
        order = profile.joints.policy_order
        home = [*profile.tools["arm"].home, 0.03] if profile.tools else [0.0] * len(order)
        self.joints[name], self.arms[name] = create(JointState, topic, qos.SENSOR), []
        for group, settings in profile.commands.by_name.items():
            joints = [profile.joints.by_name[joint] for joint in settings.joints]
            at_home = [home[order.index(joint)] for joint in settings.joints]
            arm = CommandedArm(f"{name} {group}", joints, at_home, profile.timing, uncertainty(profile.timing))
            self.arms[name].append(arm)
            subscribe(JointTrajectory, settings.topic, partial(self._obey, name, arm), qos.COMMAND)
        subscribe(ActionChunk, f"/xvla/{name}/action_chunk", self.heard[name, "chunks"].append, qos.EVENTS)
        subscribe(PolicyStatus, f"/xvla/{name}/status", self.heard[name, "status"].append, qos.LATCHED)

    def _obey(self, name, arm, message, info):
        self.heard[name, "commands"].append(message)
        sent = self.time.seconds_at(info["source_timestamp"])
        arm.receive(message, sent, self.time.ns() / 1e9, info["publication_sequence_number"])

    def _spin(self):
        while not self._ended.is_set():
            with suppress(Exception):  # rclpy's, of many types, where a topic is given back while it is looked at
                self.executor.spin_once(timeout_sec=0.05)

    def _publish(self):
        now = Time(nanoseconds=self.time.ns()).to_msg()
        for name in self.profiles:
            said = {
                joint: place
                for arm in self.arms[name]
                for joint, place in zip(arm.names, arm.say(self.time.ns() / 1e9).tolist(), strict=True)
            }
            state = JointState(name=list(said), position=list(said.values()))
            state.header.stamp = now
            self.joints[name].publish(state)
            for camera in [] if name in self.blind else self.cameras[name]:
                image = Image(height=24, width=32, encoding="rgb8", step=96, data=bytes(range(96)) * 24)
                image.header.stamp = now
                camera.publish(image)

    def wait_for(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        while not (found := condition()):
            last = {name: self.heard[name, "status"][-1:] for name in self.profiles}
            assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}; {last}"
            time.sleep(0.01)
        return found

    def meet(self):
        """Wait until the node answers: an answer sent before it knows this side is lost."""
        for client in (self._state, self._change):
            self.wait_for(client.service_is_ready, client.srv_name)
        asked = []

        def answered():
            if not asked or time.monotonic() - asked[-1][0] > ASK_AGAIN:
                asked.append((time.monotonic(), self._state.call_async(GetState.Request())))
            return any(future.done() for _, future in asked)

        self.wait_for(answered, "an answer")

    def make(self, transition):
        request = ChangeState.Request()
        request.transition.id = transition
        future = self._change.call_async(request)
        self.wait_for(future.done, f"transition {transition}")
        return future.result().success

    def wait_status(self, name, state, reason=""):
        """Wait for a status that comes from now on."""
        statuses = self.heard[name, "status"]
        begin = len(statuses)
        self.wait_for(
            lambda: any((each.state, each.reason) == (state, reason) for each in statuses[begin:]),
            f"{name} {state} {reason}",
        )

    def wait_chunks(self, name, count):
        """Wait for some chunks from now on; return them."""
        chunks = self.heard[name, "chunks"]
        begin = len(chunks)
        self.wait_for(lambda: len(chunks) >= begin + count, f"{count} chunks of {name}")
        return chunks[begin:]

    def close(self):
        self.time.stop()
        self._ended.set()
        self._thread.join(DEADLINE)
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    file = folder / "fleet.yaml"
    settings = {name: {**like, **SETTINGS} for name, like in FLEET.items()}
    file.write_text(json.dumps({"/**": {"ros__parameters": settings}}), encoding="utf-8")  # which is YAML too
    arguments = [
        "--params-file",
        str(file),
        "-p",
        f"robots:={json.dumps(list(FLEET))}",
        "-p",
        "threads:=1",
        "-p",
        "use_sim_time:=true",
        "-p",
        "paced:=true",
    ]
    with free_domain() as domain, (folder / "output.txt").open("w") as output:
        environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "xvla_ros.nodes.policy_node", "--ros-args", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        made = Robots(domain, load_profile(file))
        try:
            made.meet()
            assert made.make(CONFIGURE) and made.make(ACTIVATE)
            made.instructions["arm"].publish(String(data="wave"))
            made.instructions["widow"].publish(String(data="lift the cube"))
            yield made
            process.terminate()
            assert process.wait(DEADLINE) == 0
            said = Path(output.name).read_text()
            assert "Traceback" not in said
            assert "widow: kinematics of /b/c/robot_description" in said
        finally:
            process.kill()
            process.wait()
            made.close()


def test_each_robot_has_its_own_instruction_domain_mode_and_topics(robots):
    for name, instruction, domain, mode in (("arm", "wave", 28, "auto"), ("widow", "lift the cube", 0, "ee6d")):
        chunk = robots.wait_chunks(name, 1)[-1]
        assert (chunk.robot, chunk.instruction, chunk.domain_id, chunk.action_mode) == (name, instruction, domain, mode)
        expected = {joint.name for joint in robots.profiles[name].joints.ordered}

        def commanded(name=name):
            return {joint for command in list(robots.heard[name, "commands"]) for joint in command.joint_names}

        robots.wait_for(lambda wanted=expected, told=commanded: told() >= wanted, f"commands of every group of {name}")
        assert commanded() == expected


def test_a_robot_without_its_camera_delays_nobody(robots):
    robots.wait_status("arm", "running")
    robots.wait_status("widow", "running")
    robots.blind.add("arm")
    robots.wait_status("arm", "holding", "camera_stale")
    count, holds = len(robots.heard["arm", "chunks"]), robots.heard["widow", "status"][-1].holds
    robots.wait_chunks("widow", 5)
    assert len(robots.heard["arm", "chunks"]) <= count + 1, "one that was taken as the hold began is said after it"
    assert robots.heard["widow", "status"][-1].holds == holds
    robots.blind.clear()
    robots.wait_status("arm", "running")
    robots.wait_chunks("arm", 1)
