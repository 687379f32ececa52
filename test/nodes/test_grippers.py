# SPDX-License-Identifier: Apache-2.0
"""Grippers by setpoints that are sent when they change: on a topic, and as goals of an action.

No control_msgs comes from PyPI, so its actions are played by a stand-in of the same structure: what is made of a
setpoint is tested, not that a controller takes it.
"""

import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from xvla_ros.errors import SetupError
from xvla_ros.nodes import qos
from xvla_ros.nodes.policy import commands
from xvla_ros.nodes.policy.commands import ChangeGate, gripper_outlet, require_outlets
from xvla_ros.robots import Profile, load_profile

DEADLINE = 240.0  # ends what hangs
PAIR = load_profile("so101_bimanual_split")["so101_bimanual_split"]


def with_gripper(interface, **settings):
    mapping = PAIR.to_mapping()
    mapping["commands"]["right_gripper"] |= {"interface": interface, "topic": "/right/gripper", **settings}
    return Profile.from_mapping(PAIR.name, mapping)


def sent(setpoints, min_change=0.1, period=0.03, span=1.0):
    now = [0.0]
    gate = ChangeGate(span, min_change, lambda: now[0])
    passed = []
    for setpoint in setpoints:
        now[0] += period
        if gate.passes(setpoint):
            passed.append(setpoint)
    return passed


def test_a_setpoint_is_sent_once_while_it_stands():
    assert sent([0.3] * 50) == [0.3]


def test_a_moving_setpoint_is_sent_in_steps_and_as_it_is_where_it_ends():
    ramp = np.linspace(0.0, 0.55, 56)
    passed = sent([*ramp, *[ramp[-1]] * 6])
    assert passed[0] == 0.0 and passed[-1] == ramp[-1]
    assert (np.diff(passed)[:-1] > 0.1).all() and len(passed) == 7


def test_a_setpoint_that_trembles_is_not_sent_again():
    trembling = 0.5 + 0.04 * np.sin(np.arange(200))
    assert len(sent(trembling)) == 1


def test_after_a_pause_it_is_sent_again():
    assert sent([0.3] * 4, period=0.6) == [0.3] * 4


@pytest.fixture
def node(ros_domain):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    made = rclpy.create_node("gripping", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


def test_a_topic_gets_one_value(node):
    profile = with_gripper("gripper_command")
    outlet = gripper_outlet(node, profile, "right_gripper", MutuallyExclusiveCallbackGroup())
    heard = []
    node.create_subscription(Float64MultiArray, "/right/gripper", heard.append, qos.COMMAND)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    deadline = time.monotonic() + DEADLINE
    while not heard and time.monotonic() < deadline:
        if outlet.get_subscription_count():
            outlet.publish(0.7)
        executor.spin_once(timeout_sec=0.1)
    assert [list(message.data) for message in heard] == [[0.7]] and outlet.topic_name == "/right/gripper"
    outlet.destroy()
    executor.shutdown()


def test_a_controller_that_comes_back_gets_the_setpoint_that_stands(node, monkeypatch):
    """It was away for less than ends a run, and nothing else has changed."""
    now = [0.0]
    monkeypatch.setattr(commands, "ChangeGate", lambda span, change: ChangeGate(span, change, lambda: now[0]))
    outlet = gripper_outlet(node, with_gripper("gripper_command"), "right_gripper", MutuallyExclusiveCallbackGroup())
    said, count = [], [1]
    monkeypatch.setattr(
        outlet,
        "_publisher",
        SimpleNamespace(publish=lambda message: said.append(message.data[0]), get_subscription_count=lambda: count[0]),
    )

    def live(seconds, setpoint=0.7):
        for _ in range(round(seconds / 0.03)):
            now[0] += 0.03
            outlet.publish(setpoint)

    live(1.0)
    assert said == [0.7]
    count[0] = 0
    live(0.3)
    assert said == [0.7], "nobody would hear it"
    count[0] = 1
    live(1.0)
    assert said == [0.7] * 4, "until it is surely heard"
    now[0] += 0.03
    count[0] = 0
    assert outlet.get_subscription_count() == 0, "as the robot's link looks between two setpoints"
    count[0] = 1
    live(1.0)
    assert len(said) > 4


class StandInClient:
    """Keeps the goals it is asked to send; refuses them on demand, and ends them as it is told."""

    def __init__(self, node, kind, topic, callback_group):
        self.goals, self.accepts, self.ready, self.results = [], True, True, []

    def end(self, number, status):
        self.results[number](SimpleNamespace(result=lambda: SimpleNamespace(status=status)))

    def server_is_ready(self):
        return self.ready

    def send_goal_async(self, goal):
        self.goals.append(goal)
        result = SimpleNamespace(add_done_callback=self.results.append)
        handle = SimpleNamespace(accepted=self.accepts, get_result_async=lambda: result)
        answer = SimpleNamespace(result=lambda: handle)
        return SimpleNamespace(add_done_callback=lambda callback: callback(answer))


@pytest.fixture
def stand_in_control_msgs(monkeypatch):
    """The two actions as their definitions have them: GripperCommand {position, max_effort}, and a JointState."""
    module, actions = ModuleType("control_msgs"), ModuleType("control_msgs.action")

    class GripperCommand:
        class Goal:
            def __init__(self):
                self.command = SimpleNamespace(position=0.0, max_effort=0.0)

    class ParallelGripperCommand:
        class Goal:
            def __init__(self):
                self.command = JointState()

    actions.GripperCommand, actions.ParallelGripperCommand = GripperCommand, ParallelGripperCommand
    monkeypatch.setitem(sys.modules, "control_msgs", module)
    monkeypatch.setitem(sys.modules, "control_msgs.action", actions)
    monkeypatch.setattr(commands, "ActionClient", StandInClient)


def test_goals_of_both_actions_carry_the_setpoint(node, stand_in_control_msgs):
    for interface in ("gripper_action", "parallel_gripper_action"):
        profile = with_gripper(interface, max_effort=5.0)
        require_outlets(profile)
        outlet = gripper_outlet(node, profile, "right_gripper", MutuallyExclusiveCallbackGroup())
        assert outlet.get_subscription_count() == 1 and outlet.topic_name == "/right/gripper"
        for setpoint in (0.5, 0.5, 0.51, 1.2):
            outlet.publish(setpoint)
        goals = outlet._client.goals
        if interface == "gripper_action":
            assert [(goal.command.position, goal.command.max_effort) for goal in goals] == [(0.5, 5.0), (1.2, 5.0)]
        else:
            assert [list(goal.command.position) for goal in goals] == [[0.5], [1.2]]
            assert list(goals[0].command.name) == ["jaw_joint"] and list(goals[0].command.effort) == [5.0]


def test_what_was_refused_or_not_served_is_sent_again(node, stand_in_control_msgs):
    outlet = gripper_outlet(node, with_gripper("gripper_action"), "right_gripper", MutuallyExclusiveCallbackGroup())
    outlet._client.ready = False
    outlet.publish(0.5)
    assert not outlet._client.goals and outlet.get_subscription_count() == 0
    outlet._client.ready, outlet._client.accepts = True, False
    outlet.publish(0.5)
    outlet._client.accepts = True
    outlet.publish(0.5)
    outlet.publish(0.5)
    assert len(outlet._client.goals) == 2


def test_a_goal_that_was_aborted_or_lost_is_sent_again(node, stand_in_control_msgs, monkeypatch):
    now, warned = [0.0], []
    monkeypatch.setattr(commands, "ChangeGate", lambda span, change: ChangeGate(span, change, lambda: now[0]))
    monkeypatch.setattr(node, "get_logger", lambda: SimpleNamespace(warning=lambda text, **_: warned.append(text)))
    outlet = gripper_outlet(node, with_gripper("gripper_action"), "right_gripper", MutuallyExclusiveCallbackGroup())
    client = outlet._client

    def goals_after(seconds, setpoint=0.5):
        for _ in range(round(seconds / 0.03)):
            now[0] += 0.03
            outlet.publish(setpoint)
        return len(client.goals)

    assert goals_after(1.0) == 1
    for tries in (1, 2, 3):
        client.end(-1, GoalStatus.STATUS_ABORTED)
        assert goals_after(0.9) == tries and goals_after(2.0) == tries + 1
    assert len(warned) == 1 and "aborted a setpoint of jaw_joint" in warned[0]
    client.end(-1, GoalStatus.STATUS_SUCCEEDED)
    assert goals_after(2.0) == 4
    assert goals_after(2.0, 1.2) == 5
    client.end(-2, GoalStatus.STATUS_ABORTED)  # the newer one replaced it
    assert goals_after(2.0, 1.2) == 5
    client.ready = False
    assert goals_after(0.09, 1.2) == 5
    client.ready = True
    assert goals_after(2.0, 1.2) == 6


@pytest.mark.skipif("control_msgs" in sys.modules, reason="control_msgs is installed")
def test_without_control_msgs_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    require_outlets(with_gripper("gripper_command"))
    with pytest.raises(SetupError, match=r"gripper_action of /right/gripper needs the package control_msgs.*install"):
        require_outlets(with_gripper("gripper_action"))
