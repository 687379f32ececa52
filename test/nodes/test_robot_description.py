# SPDX-License-Identifier: Apache-2.0
"""The node ``/xvla`` beside a WidowX that publishes its URDF, in a process of its own, over DDS."""

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Log
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

sys.path.append(str(Path(__file__).parent))

from paced_time import PacedTime
from stand_in_pair import EVERY_ONE

from xvla_ros import ros_env
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes import qos
from xvla_ros.robots import load_profile
from xvla_ros.robots.kinematics import shipped_description

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
DEADLINE = 240.0  # ends what hangs
PROFILE = load_profile("widowx")["widowx"]
URDF = shipped_description("wx250s").text
POSES, GRIPPER = "/servo_node/pose_target_cmds", "/wx250s/gripper_controller/joint_trajectory"
PICTURE = bytes(24 * 32 * 3)
SETTINGS = {"policy.denoising_steps": 2}


def servo_profile(path):
    """Write WidowX's profile with its arm commanded by poses; return the file."""
    mapping = PROFILE.to_mapping()
    mapping["commands"] |= {
        "interface": "pose",
        "arm": {"topic": POSES, "tool": "arm"},
        "gripper": {"topic": GRIPPER, "joints": ["gripper"]},
    }
    del mapping["tools"]["arm"]["joints"]  # ROS reads no empty list
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"widowx": mapping}}}))
    return path


class StandInWidowX:
    """An arm that stands at home with its camera, and hears what it is told. A thread of its own serves its topics."""

    def __init__(self, domain, namespace=""):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("stand_in_widowx", context=self.context)
        self.heard = defaultdict(list)
        self.description = None
        self._namespace = namespace
        self._joints = self.node.create_publisher(JointState, "/wx250s/joint_states", qos.SENSOR)
        self._camera = self.node.create_publisher(Image, "/front/image_raw", qos.SENSOR)
        for kind, topic in ((PoseStamped, POSES), (JointTrajectory, GRIPPER), (Log, "/rosout")):
            self.node.create_subscription(kind, topic, self.heard[topic].append, EVERY_ONE)
        # after these: a node that answers has found who listens to its log
        self._change = self.node.create_client(ChangeState, f"{namespace}/xvla/change_state")
        self._state = self.node.create_client(GetState, f"{namespace}/xvla/get_state")
        self.time = PacedTime()
        self.time.join(self.node, self._publish, 30)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self.time.start()

    def describe(self, urdf):
        """Publish a URDF as robot_state_publisher does, or with None be it no longer."""
        if self.description is not None:
            self.node.destroy_publisher(self.description)
            self.description = None
        if urdf is not None:
            self.description = self.node.create_publisher(String, f"{self._namespace}/robot_description", qos.LATCHED)
            self.description.publish(String(data=urdf))

    def _spin(self):
        while not self._ended.is_set():
            with suppress(Exception):  # rclpy's, of many types, where a topic is given back while it is looked at
                self.executor.spin_once(timeout_sec=0.05)

    def _publish(self):
        now = Time(nanoseconds=self.time.ns()).to_msg()
        names = [joint.name for joint in PROFILE.joints.ordered]
        joints = JointState(name=names, position=[*PROFILE.tools["arm"].home, 0.03])
        image = Image(height=24, width=32, encoding="rgb8", step=96, data=PICTURE)
        for publisher, message in ((self._joints, joints), (self._camera, image)):
            message.header.stamp = now
            publisher.publish(message)

    def wait_for(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}; the log: {self.log()}"
            time.sleep(0.01)
        return found

    def _call(self, client, request):
        self.wait_for(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self.wait_for(future.done, client.srv_name)
        return future.result()

    def meet(self):
        """Wait until the node answers: what it says before it has found this client's reader is lost."""
        self.wait_for(self._state.service_is_ready, self._state.srv_name)
        asked = []

        def answered():
            if not asked or time.monotonic() - asked[-1][0] > 2.0:
                asked.append((time.monotonic(), self._state.call_async(GetState.Request())))
            return any(future.done() for _, future in asked)

        self.wait_for(answered, self._state.srv_name)
        self.wait_for(self._change.service_is_ready, self._change.srv_name)

    def make(self, transition):
        request = ChangeState.Request()
        request.transition.id = transition
        return self._call(self._change, request).success

    def state(self):
        return self._call(self._state, GetState.Request()).current_state.label

    def configure(self, *words, succeeds=True):
        """Configure until a line with these words is logged: a URDF just published may not have reached the node."""

        def said():
            made = self.make(CONFIGURE)
            if not any(all(word in line for word in words) for line in self.log()):
                assert not made or self.make(CLEANUP)
                return False
            return made == succeeds

        self.wait_for(said, words)
        assert self.state() == ("inactive" if succeeds else "unconfigured")

    def log(self):
        return [entry.msg for entry in self.heard["/rosout"]]

    def wait_line(self, *words):
        return self.wait_for(lambda: [line for line in self.log() if all(word in line for word in words)], words)

    def close(self):
        self.time.stop()
        self._ended.set()
        self._thread.join(DEADLINE)
        rclpy.shutdown(context=self.context)


def start_node(domain, output, namespace="", file=None, **parameters):
    """``/xvla`` for WidowX with an untrained policy, by a profile file or the shipped profile."""
    values = {
        "robots": ["widowx"],
        "threads": 1,
        "seed": 3,
        "instruction": "lift the cube",
        "use_sim_time": True,
        "paced": True,
    }
    values |= {f"widowx.{name}": value for name, value in {**SETTINGS, **parameters}.items()}
    arguments = [part for name, value in values.items() for part in ("-p", f"{name}:={json.dumps(value)}")]
    if file is not None:
        arguments += ["--params-file", str(file)]
    if namespace:
        arguments += ["-r", f"__ns:={namespace}"]
    environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "xvla_ros.nodes.policy_node", "--ros-args", *arguments],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def arm_and_node(request, tmp_path):
    """A stand-in and a node with the settings given: ``namespace``, ``file`` (what writes one) or parameters."""
    settings = dict(getattr(request, "param", {}))
    namespace = settings.pop("namespace", "")
    if "file" in settings:
        settings["file"] = settings["file"](tmp_path / "profile.yaml")
    with free_domain() as domain:
        arm = StandInWidowX(domain, namespace)
        process = start_node(domain, tmp_path / "output.txt", namespace, **settings)
        try:
            arm.meet()
            yield arm
            process.terminate()
            assert process.wait(DEADLINE) == 0
            assert "Traceback" not in (tmp_path / "output.txt").read_text()
        finally:
            process.kill()
            process.wait(DEADLINE)
            arm.close()


def test_what_is_published_comes_before_the_profiles_urdf(arm_and_node):
    """And is used each time the node is configured, as it is then; one that does not fit leaves it unconfigured."""
    arm = arm_and_node
    assert arm.make(CONFIGURE)
    arm.wait_line("widowx: kinematics of", "wx250s.urdf")
    assert arm.make(CLEANUP)

    arm.describe(URDF)
    arm.configure("widowx: kinematics of /robot_description")
    assert arm.make(CLEANUP)

    arm.describe(URDF.replace('"-1.88496"', '"-1.5"'))
    arm.configure(
        "cannot configure",
        "/robot_description",
        "joint 'shoulder' may move -1.88496 … 1.98968",
        "-1.5 …",
        "remap robot_description",
        succeeds=False,
    )
    arm.describe(URDF.replace('"wrist_angle"', '"wrist_pitch"'))
    arm.configure(
        "cannot configure", "joint 'wrist_pitch' of /robot_description", "no joint has that name", succeeds=False
    )
    arm.describe("<robot")
    arm.configure("cannot configure", "/robot_description is not a URDF", succeeds=False)

    arm.describe(None)
    arm.configure("widowx: kinematics of", "wx250s.urdf")


@pytest.mark.parametrize("arm_and_node", [{"tools.arm.urdf": "", "namespace": "/cell"}], indirect=True)
def test_a_profile_without_urdf_takes_that_of_its_namespace(arm_and_node):
    arm = arm_and_node
    assert not arm.make(CONFIGURE)
    arm.wait_line("tools.arm.urdf is empty and no robot_description was received")
    arm.describe(URDF)
    arm.configure("widowx: kinematics of /cell/robot_description")


@pytest.mark.parametrize("arm_and_node", [{"file": servo_profile}], indirect=True)
def test_a_servo_gets_poses_often_enough_and_its_gripper_trajectories(arm_and_node):
    """The arm stands still whatever it is told, so the first pose is near where it stands, and none leaves the box."""
    arm = arm_and_node
    assert arm.make(CONFIGURE) and arm.make(ACTIVATE)
    poses = arm.wait_for(lambda: len(arm.heard[POSES]) >= 40 and arm.heard[POSES], "poses")
    assert arm.make(DEACTIVATE)
    stamps = np.array([pose.header.stamp.sec + pose.header.stamp.nanosec / 1e9 for pose in poses])
    assert (len(stamps) - 1) / (stamps[-1] - stamps[0]) >= 10.0
    assert {pose.header.frame_id for pose in poses} == {"wx250s/base_link"}
    places = np.array([[getattr(pose.pose.position, axis) for axis in "xyz"] for pose in poses])
    turns = np.array([[getattr(pose.pose.orientation, axis) for axis in "xyzw"] for pose in poses])
    np.testing.assert_allclose(np.linalg.norm(turns, axis=1), 1.0, atol=1e-9)
    np.testing.assert_allclose(places[0], [0.12, -0.02, 0.247], atol=0.03)
    tool = PROFILE.tools["arm"]
    inside = np.clip(places, np.array(tool.workspace_min), np.maximum(tool.workspace_max, places[0]))
    np.testing.assert_allclose(places, inside, atol=0.02)
    assert np.ptp(places, axis=0).max() > 1e-3
    assert arm.heard[GRIPPER] and list(arm.heard[GRIPPER][0].joint_names) == ["left_finger"]
