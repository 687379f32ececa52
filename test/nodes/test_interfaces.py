# SPDX-License-Identifier: Apache-2.0
"""Every command interface goes through everything that sends, takes, checks, records, reads or simulates commands.

The interfaces come from the registry: one that a part was not taught ends here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("pinocchio", reason="the tool that interface pose commands needs it")

from rclpy.serialization import serialize_message
from std_msgs.msg import Float64MultiArray

from xvla_ros.commands.graph_checks import graph_findings, topics_of
from xvla_ros.control.motion import CommandWindow, MotionState
from xvla_ros.errors import MessageError, SetupError, SimulationError
from xvla_ros.evaluation.bag_info import inspect
from xvla_ros.evaluation.replay.bag import ReplaySettings, replay_bag
from xvla_ros.evaluation.replay.live import check_live
from xvla_ros.evaluation.replay.sources import Answer
from xvla_ros.nodes.graph import Endpoint, GraphSnapshot
from xvla_ros.nodes.messages import message_class
from xvla_ros.nodes.policy.commands import GOALS, command_messages, command_type, has_gripper_outlet
from xvla_ros.nodes.sim.served_robot import HANDLERS
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording
from xvla_ros.recordings.cdr import JointCommand, read_command
from xvla_ros.recordings.cdr import command_type as recorded_type
from xvla_ros.recordings.marks import recorded_topics
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.interfaces import ACTION_STATUS, INTERFACES, GroupInterface, RobotInterface
from xvla_ros.simulation.demonstrations import WRITERS
from xvla_ros.simulation.world import World

sys.path.append(str(Path(__file__).parents[1] / "training"))
from recorded import START, Session, changed, curve

FOLD = ("instruction", "fold the cloth")
OF_TOPICS = [name for name, kind in INTERFACES.items() if kind.message_type]
every = pytest.mark.parametrize("name", INTERFACES)
every_on_a_topic = pytest.mark.parametrize("name", OF_TOPICS)


def robot(name):
    """A robot with one group of an interface, and that group."""
    if name == "pose":
        posed = {"topic": "/servo_node/pose_target_cmds", "tool": "arm"}
        return changed("widowx", FOLD, ("commands.interface", "pose"), ("commands.arm", posed)), "arm"
    return changed("so101_bimanual_split", FOLD, ("commands.right_gripper.interface", name)), "right_gripper"


def sent_at(profile, seconds):
    """What every group of a topic is sent at a time, as its outlet sends it."""
    times = profile.timing.lead + np.array([0.0, 0.05])
    positions = curve(profile, seconds + times)
    rest = np.zeros_like(positions)
    window = CommandWindow(
        stamp=START + round(seconds * 1e9),
        start=MotionState.at_rest(rest[0]),
        times=times,
        positions=positions,
        velocities=rest,
        accelerations=rest,
        limited=0,
    )
    for group, message in command_messages(profile, window, StateEncoder(profile)).items():
        if recorded_type(profile, group):
            yield group, Float64MultiArray(data=[message]) if has_gripper_outlet(profile, group) else message


def recorded(profile, path, *, silent=()):
    """A bag of the robot with all that it was sent, but to some groups."""
    session = Session(profile, end=2.0, commands=False).record()
    for seconds in np.arange(0.0, 2.0, 0.1):
        for group, message in sent_at(profile, seconds):
            if group not in silent:
                topic = profile.commands.by_name[group].topic
                session.add(seconds, topic, recorded_type(profile, group), serialize_message(message))
    return session.write(path)


class Repeated:
    """Answers with what was recorded."""

    name, trained, waypoints, policy = "repeated", True, 10, None

    def answer(self, questions):
        return [Answer(each.recorded.astype(np.float32), 5.0) for each in questions]


def test_a_profile_may_name_every_interface_and_no_other():
    of_robots, of_groups = set(get_args(RobotInterface)), set(get_args(GroupInterface)) - {""}
    assert of_robots | of_groups == set(INTERFACES)
    assert of_robots == {name for name, kind in INTERFACES.items() if not kind.is_gripper}
    assert set(INTERFACES) - of_groups == {"pose"}, "a tool's group has no interface of its own"


@every
def test_the_graph_is_checked_for_who_takes_the_commands(name):
    profile, group = robot(name)
    kind, topic = INTERFACES[name], profile.commands.by_name[group].topic
    where, end = kind.graph_topic(topic), Endpoint("/controller", ACTION_STATUS if kind.is_action else kind.type)
    assert where in topics_of(profile)

    def said(**graph):
        found = graph_findings(profile, GraphSnapshot(topics={}, **graph))
        return [each.problem for each in found if each.problem.key == f"{profile.name}.commands.{group}.topic"]

    assert said(**{"publishers" if kind.is_action else "subscribers": {where: (end,)}}) == []
    (problem,) = said()
    assert topic in problem.message and end.type in problem.expected
    if not kind.is_action:
        (problem,) = said(subscribers={where: (Endpoint("/controller", "std_msgs/msg/String"),)})
        assert problem.expected == kind.type


@every_on_a_topic
def test_what_is_sent_is_read_alike_live_and_from_a_bag(name):
    profile, group = robot(name)
    message = dict(sent_at(profile, 1.0))[group]
    assert type(message) is command_type(profile, group) is message_class(INTERFACES[name].type)
    found = read_command(profile, group, serialize_message(message))
    if isinstance(found, JointCommand):
        column = profile.joints.policy_order.index(profile.commands.by_name[group].joints[0])
        np.testing.assert_allclose(found.positions[0, 0], curve(profile, 1.0 + profile.timing.lead)[column])
    else:
        place = message.pose.position
        np.testing.assert_array_equal(found.position, [place.x, place.y, place.z])
    with pytest.raises(MessageError):
        read_command(profile, group, serialize_message(message)[:9])


@pytest.mark.parametrize("name", [name for name, kind in INTERFACES.items() if kind.is_action])
def test_every_action_has_its_goals(name):
    profile, group = robot(name)
    assert has_gripper_outlet(profile, group)
    goal = SimpleNamespace(command=SimpleNamespace())
    GOALS[INTERFACES[name].type](goal, "jaw", 0.3, 0.0)
    assert np.ravel(goal.command.position) == [0.3]


@every
def test_it_is_recorded(name):
    """An action has no topic for its goals."""
    profile, group = robot(name)
    topics = {each.name: each.type for each in recorded_topics(profile)}
    topic = profile.commands.by_name[group].topic
    assert topics.get(topic, "") == INTERFACES[name].message_type
    assert all(message_class(kind) for kind in topics.values())


@every
def test_a_bag_of_it_lacks_nothing(name, tmp_path):
    profile, group = robot(name)
    bag = recorded(profile, tmp_path / "bag.mcap")
    info = inspect(bag, profile)
    assert (info.missing, info.unused) == ((), ())
    (found,) = (
        inspect(recorded(profile, tmp_path / "other.mcap", silent=(group,)), profile).missing
        if name in OF_TOPICS
        else ("",)
    )
    assert (f"commands of {group}" in found) == (name in OF_TOPICS)


@every
def test_a_bag_of_it_is_trained_on(name, tmp_path):
    profile, group = robot(name)
    bag = BagRecording(recorded(profile, tmp_path / "bag.mcap"), profile, BagOptions())
    survey = bag.survey()
    assert survey.problems == () and survey.actions == "commanded" and len(survey.episodes) == 1
    joints = profile.commands.by_name[group].joints
    if joints and name in OF_TOPICS:
        due = 1.0 + profile.timing.lead  # of what was sent at 1 s
        times, told = bag.joint_path(survey, 0)
        column = profile.joints.policy_order.index(joints[0])
        (reached,) = told[times == START + round(due * 1e9), column]
        assert reached == pytest.approx(curve(profile, due)[column])


@pytest.mark.parametrize("name", [name for name, kind in INTERFACES.items() if kind.is_gripper and kind.message_type])
def test_a_gripper_that_was_to_stand_in_an_episode_was_commanded(name, tmp_path):
    """It is sent when it changes, so what was sent last holds; where nothing ever was, its topic was not recorded."""
    profile, group = robot(name)
    column = profile.joints.policy_order.index(profile.commands.by_name[group].joints[0])
    session = Session(profile, end=2.0, commands=False).record().mark(0.5, "start").mark(1.9, "end")
    for seconds in np.arange(0.0, 2.0, 0.1):
        for of, message in sent_at(profile, seconds):
            if of != group or seconds == 0.2:
                topic = profile.commands.by_name[of].topic
                session.add(seconds, topic, recorded_type(profile, of), serialize_message(message))
    bag = BagRecording(session.write(tmp_path / "bag.mcap"), profile, BagOptions())
    survey = bag.survey()
    assert survey.problems == () and survey.actions == "commanded"
    _, told = bag.joint_path(survey, 0)
    assert told[:, column] == pytest.approx(curve(profile, 0.2 + profile.timing.lead)[column])

    silent = recorded(profile, tmp_path / "silent.mcap", silent=(group,))
    (problem,) = BagRecording(silent, profile, BagOptions("commanded")).survey().problems
    assert "no command was sent on" in problem.message


@every
def test_a_bag_of_it_is_replayed(name, tmp_path):
    profile, _ = robot(name)
    record = replay_bag(
        recorded(profile, tmp_path / "bag.mcap"), profile, [Repeated()], ReplaySettings(every=5), tmp_path / "part"
    )
    assert record.error == "" and record.frames >= 5


@every
def test_the_player_serves_it_or_says_so(name):
    profile, _ = robot(name)
    if name in OF_TOPICS:
        check_live(profile)
    else:
        with pytest.raises(SetupError, match=f"serves no controllers for .*{name}"):
            check_live(profile)


@every
def test_it_is_simulated_or_refused_by_name(name):
    profile, group = robot(name)
    if not INTERFACES[name].simulated:
        with pytest.raises(SimulationError, match=f"{group}.*'{name}'.*serve 'joint_trajectory'"):
            World(profile)
        return
    world = World(profile)
    for of, message in sent_at(profile, 0.0):
        assert HANDLERS[recorded_type(profile, of)](world, of, message) is None
    assert world.controllers[group].accepted == 1


@pytest.mark.parametrize("name", [name for name, kind in INTERFACES.items() if kind.simulated])
def test_a_demonstration_of_it_is_read_back(name):
    profile, group = robot(name)
    names, due = ["jaw_joint"], np.array([round(profile.timing.lead * 1e9)])
    data = WRITERS[recorded_type(profile, group)](START, names, due, np.array([[0.3]]))
    found = read_command(profile, group, data)
    assert (found.times.tolist(), found.positions.tolist()) == (due.tolist(), [[0.3]])
