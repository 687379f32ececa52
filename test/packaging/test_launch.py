# SPDX-License-Identifier: Apache-2.0
"""The launch file under the real launch_ros, which comes with a ROS distribution and not from PyPI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch_ros is not on PyPI; source a ROS distribution")

import rclpy
from launch import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import qos_profile_sensor_data
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.ros_env import child_environment

from xvla_ros.msg import PolicyStatus  # isort: skip

LAUNCH_FILE = Path(__file__).parents[2] / "launch" / "xvla.launch.py"
DEADLINE = 300.0  # ends what hangs
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [item.split(":=", 1) for item in sys.argv[2:]]
service = LaunchService(noninteractive=True)
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""

pytestmark = [pytest.mark.launch, pytest.mark.timeout(400)]


class Bringup:
    """A running launch file and a node of the test's that watches ``/NAMESPACE/xvla``."""

    def __init__(self, domain: int, log: Path, *arguments: str, name: str = "/xvla") -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(LAUNCH_FILE), *arguments],
                env=child_environment() | {"OMP_NUM_THREADS": "1", "ROS_LOG_DIR": str(log.parent)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("probe", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.states: list[str] = []
        self.commands: list[JointTrajectory] = []
        self.node.create_subscription(
            TransitionEvent, f"{name}/transition_event", lambda m: self.states.append(m.goal_state.label), 10
        )
        self.node.create_subscription(
            JointTrajectory, "/left/arm_controller/joint_trajectory", self.commands.append, qos_profile_sensor_data
        )
        self.get_state = self.node.create_client(GetState, f"{name}/get_state")
        self.change_state = self.node.create_client(ChangeState, f"{name}/change_state")

    def wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, f"the launch ended before {what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}:\n{self.log.read_text()}"
            self.executor.spin_once(timeout_sec=0.2)

    def call(self, client, request):
        self.wait_for(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self.wait_for(future.done, f"an answer of {client.srv_name}")
        return future.result()

    def state(self) -> int:
        return self.call(self.get_state, GetState.Request()).current_state.id

    def change(self, transition: int) -> bool:
        return self.call(self.change_state, ChangeState.Request(transition=Transition(id=transition))).success

    def interrupt(self) -> str:
        """Press Ctrl-C; return everything that was said."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=DEADLINE)
        return self.log.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def bring_up(ros_domain: int, tmp_path: Path) -> Iterator:
    started: list[Bringup] = []

    def start(*arguments: str, **options: str) -> Bringup:
        started.append(Bringup(ros_domain, tmp_path / "launch.log", *arguments, **options))
        return started[-1]

    yield start
    for bringup in started:
        bringup.close()


def test_the_arguments_are_those_promised():
    description = PythonLaunchDescriptionSource(str(LAUNCH_FILE)).get_launch_description(LaunchContext())
    declared = {argument.name: argument.default_value for argument in description.get_launch_arguments()}
    assert {"robot", "robots", "checkpoint", "sim", "namespace", "device", "autostart"} <= set(declared)
    assert {"dtype", "params_file", "seed", "task", "rviz"} <= set(declared)


def test_the_policy_reaches_active_and_commands_the_simulated_arm(bring_up):
    bringup = bring_up("sim:=true", "instruction:=touch the red cube")
    bringup.wait_for(lambda: bringup.commands, "a command")
    assert bringup.state() == State.PRIMARY_STATE_ACTIVE

    # Once by hand: nothing takes the node back up behind the user's back.
    assert bringup.change(Transition.TRANSITION_DEACTIVATE)
    assert bringup.change(Transition.TRANSITION_CLEANUP)
    bringup.wait_for(lambda: bringup.states[-1:] == ["unconfigured"], "the last transition")

    assert bringup.states[-4:] == ["deactivating", "inactive", "cleaningup", "unconfigured"]
    said = bringup.interrupt()
    assert "escalating" not in said, said
    assert "Traceback" not in said, said


def test_a_task_is_led_and_what_came_of_each_episode_is_logged(bring_up):
    bringup = bring_up("sim:=true", "task:=touch", "seed:=901", "dtype:=float32")
    bringup.wait_for(lambda: "of 2 succeeded" in bringup.log.read_text(), "two episodes")
    said = bringup.interrupt()
    assert "touch: '" in said and "(seed 901 begins)" in said and "(seed 902);" in said
    assert "computes in float32: as requested" in said
    assert "Traceback" not in said, said


@pytest.mark.parametrize(("arguments", "dtype"), [([], "bfloat16"), (["dtype:=float32"], "float32")])
def test_parameters_of_a_file_count_where_no_argument_says_otherwise(bring_up, tmp_path, arguments, dtype):
    file = tmp_path / "more.yaml"
    file.write_text("/**: {ros__parameters: {dtype: bfloat16, threads: 1}}")
    bringup = bring_up("autostart:=false", f"params_file:={file}", *arguments)
    client = AsyncParameterClient(bringup.node, "/xvla")
    bringup.wait_for(client.services_are_ready, "the parameter services")
    future = client.get_parameters(["dtype", "threads"])
    bringup.wait_for(future.done, "the parameters")
    found = future.result().values
    assert (found[0].string_value, found[1].integer_value) == (dtype, 1)


def test_without_autostart_the_node_waits_in_its_namespace(bring_up):
    bringup = bring_up("autostart:=false", "namespace:=cell", name="/cell/xvla")
    assert bringup.state() == State.PRIMARY_STATE_UNCONFIGURED
    said = bringup.interrupt()
    assert "escalating" not in said, said


def test_several_robots_are_driven_by_one_node_and_simulated_on_one_clock(bring_up, tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        "/**: {ros__parameters: {arm_a: {like: so101, namespace: /a}, arm_b: {like: so101, namespace: /b}}}"
    )
    bringup = bring_up(f"robots:={fleet}", "sim:=true", "instruction:=touch the red cube")
    heard: dict[str, list[PolicyStatus]] = {"arm_a": [], "arm_b": []}
    for robot, statuses in heard.items():
        bringup.node.create_subscription(PolicyStatus, f"/xvla/{robot}/status", statuses.append, 10)
    for robot, statuses in heard.items():
        bringup.wait_for(lambda s=statuses: any(each.trajectories for each in s), f"commands of {robot}")
    names = [name for name, _ in bringup.node.get_node_names_and_namespaces()]
    assert names.count("xvla") == names.count("sim") == 1
    said = bringup.interrupt()
    assert "Traceback" not in said, said


def test_an_unknown_robot_starts_nothing_and_says_which_there_are(bring_up):
    bringup = bring_up("robot:=no_such_arm")
    assert bringup.process.wait(timeout=DEADLINE) == 1
    said = bringup.log.read_text()
    assert "no_such_arm" in said
    assert "so101_bimanual" in said
    assert "process started" not in said


def test_untrained_weights_end_the_launch_of_a_real_arm(bring_up):
    bringup = bring_up("robot:=so101")
    assert bringup.process.wait(timeout=DEADLINE) == 1
    said = bringup.log.read_text()
    assert "cannot activate: so101: untrained: domain 28 is not trained in random weights" in said
    assert "xvla could not be activated" in said


@pytest.mark.parametrize("arguments", [[], ["sim:=true", "task:=touch"]])
def test_a_configuration_that_fails_ends_the_launch_and_says_why(bring_up, tmp_path, arguments):
    bringup = bring_up(f"checkpoint:={tmp_path / 'nowhere'}", *arguments)
    assert bringup.process.wait(timeout=DEADLINE) == 1
    said = bringup.log.read_text()
    assert "cannot configure: checkpoint" in said and "nowhere: is not a folder" in said
    assert ("could not run an episode" if arguments else "xvla could not be configured") in said


def test_a_simulation_without_a_task_says_that_nobody_judges(bring_up):
    bringup = bring_up("sim:=true", "autostart:=false")
    bringup.wait_for(lambda: "no episode is judged" in bringup.log.read_text(), "the hint")
    assert "Traceback" not in bringup.interrupt()


def test_an_activation_that_is_refused_later_ends_nothing(bring_up, tmp_path):
    file = tmp_path / "allowed.yaml"
    file.write_text("/**: {ros__parameters: {so101: {safety: {allow_untrained: true}}}}")
    bringup = bring_up("robot:=so101", f"params_file:={file}")
    bringup.wait_for(lambda: bringup.states and bringup.states[-1] == "active", "the activation")
    client = AsyncParameterClient(bringup.node, "/xvla")
    bringup.wait_for(client.services_are_ready, "the parameter services")
    assert bringup.change(Transition.TRANSITION_DEACTIVATE)
    future = client.set_parameters([Parameter("so101.safety.allow_untrained", value=False)])
    bringup.wait_for(future.done, "the parameter")
    assert not bringup.change(Transition.TRANSITION_ACTIVATE)
    assert bringup.state() == State.PRIMARY_STATE_INACTIVE
