# SPDX-License-Identifier: Apache-2.0
"""Arms that do not follow, joint states that physics forbids, and a node that is paused, over DDS.

Whatever happens, no command leaps: ``window_monitor`` looks at each where it arrives, and ``conftest.py`` asks it after
every test. The node, its policy and the time are those of ``test_faults.py``.
"""

import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

import rclpy
from sensor_msgs.msg import JointState

sys.path.append(str(Path(__file__).parent))

from node_process import points_of
from scripted_graph import edges, leave, take_up, went_on
from stand_in_pair import STATUS_TOPIC
from window_monitor import judge_all

from xvla_ros.nodes import qos


@contextmanager
def published_beside(pair, name, say):
    """A second node publishes after each joint state of the pair what ``say`` makes of {joint: position}."""
    node = rclpy.create_node(name, context=pair.context)
    topics = {group: node.create_publisher(JointState, topic, qos.SENSOR) for group, topic in pair.state_topics.items()}

    def publish(group, stamp, positions):
        message = say(positions)
        message.header.stamp = stamp
        topics[group].publish(message)

    with pair.stopped_time():
        pair.beside = publish
    try:
        yield
    finally:
        with pair.stopped_time():
            pair.be_alone()
        node.destroy_node()


def moves(pair):
    """Wait until each arm has gone some way."""
    before = {group: pair.position(group) for group in pair.names}
    pair.wait_for(lambda: all(np.abs(pair.position(g) - place).max() > 0.1 for g, place in before.items()), "motion")


def stands_at_the_end(pair, group):
    """Whether an arm is where the window that came last ends."""
    return (pair.position(group) == points_of(pair.last(group))[1][-1]).all()


def is_said(status):
    """Whether a status names what the arm is held for."""
    return bool(status.reason) or status.detail.startswith("waiting for the arm to stand still: ")


# joint states


@pytest.mark.parametrize("place", [0.0, 0.9])
def test_a_second_publisher_of_the_same_joints(running, place):
    """As a joint_state_publisher that was left running, whose joints all are at zero: where the arm is, now and then.

    Within what stamps may be wrong by, an arm could be there.
    """
    for arm in running.arms.values():
        arm.monitor.misled = place == 0.0

    def elsewhere(positions):
        return JointState(name=list(positions), position=[place] * len(positions))

    with published_beside(running, "joint_state_publisher", elsewhere):
        if place:
            status = running.wait_status("holding", "joints_implausible", "/joint_state_publisher, /stand_in_pair")
            assert "leaps by" in status.detail and "its max_velocity is 2 rad/s" in status.detail
        else:  # as near to zero as stamps may be wrong: joints_implausible, not_following, or an arm never seen at rest
            running.wait_for(lambda: running.status.state == "holding" and is_said(running.status), "a hold")
        running.pass_time(2.0)
    went_on(running)
    moves(running)


def test_joints_of_a_topic_that_come_in_parts_from_two_publishers(running):
    """The second is discovered whenever it is: until then its part is missing."""

    def gripper(positions):
        return JointState(name=["gripper"], position=[positions["gripper"]])

    running.make_names = lambda names: [name for name in names if name != "gripper"]
    running.wait_status("holding", "joints_stale", "(gripper)")
    with published_beside(running, "gripper_driver", gripper):
        went_on(running)
        begin = len(running.heard[STATUS_TOPIC])
        running.wait_chunks(4)
        moves(running)
        running.make_names = lambda names: names
    assert edges(running, begin) == [("running", "")]


def test_a_publisher_without_positions_beside_the_driver(running, graph):
    begin, said = len(running.heard[STATUS_TOPIC]), graph.node.said()

    def speeds(positions):
        return JointState(name=list(positions), velocity=[0.0] * len(positions))

    with published_beside(running, "speed_estimator", speeds):
        running.wait_chunks(4)
        moves(running)
    assert edges(running, begin) == [("running", "")]
    assert "WARN" not in graph.node.said().removeprefix(said)


# the arm


def test_an_arm_without_power_is_held_and_led_from_where_it_is(running):
    for seconds in (0.3, 0.6, 4.0):
        running.power(False)
        if seconds > 1.0:
            status = running.wait_status("holding", "not_following", "rad or m from its plan for")
            assert status.detail.split()[0].removeprefix("left_").removeprefix("right_") in running.names["left_arm"]
        running.pass_time(seconds)
        running.power(True)
        went_on(running)
        moves(running)


@pytest.mark.parametrize("seconds", [0.3, 0.5, 1.0, 2.0])
def test_commands_that_get_lost(running, seconds):
    """The arm comes to rest on the last that came, and what comes next leads from there."""
    begin = len(running.heard[STATUS_TOPIC])
    for _ in range(3):
        running.lose_commands(True)
        running.pass_time(seconds)
        running.lose_commands(False)
        went_on(running)
        moves(running)
    assert seconds < 2.0 or ("holding", "not_following") in edges(running, begin)


# the node


def test_a_node_that_is_paused_sends_nothing_of_before(on_the_machine):
    """A window that the pause caught in its sending may leave late; at once the rest of it follows.

    What had left before may arrive after the pause: a paused process can hold what it shares with those it sends to.
    """
    pair, begun = on_the_machine.pair, take_up(on_the_machine)
    pair.wait_status("running")
    for pause in range(6):
        pair.wait_commands(10 + 3 * pause)
        on_the_machine.node.send(signal.SIGSTOP)
        pair.pass_time(1.0)  # longer than a window
        for group in pair.names:
            pair.wait_for(lambda group=group: stands_at_the_end(pair, group), "the arm to have followed the last")
        judge_all()
        missed = {group: arm.monitor.missed for group, arm in pair.arms.items()}
        goes_on = pair.seconds()
        on_the_machine.node.send(signal.SIGCONT)
        for group, arm in pair.arms.items():
            pair.wait_for(lambda arm=arm, goes_on=goes_on: len(arm.before_and_since(goes_on)[1]) > 1, "two commands")
            before, since = arm.before_and_since(goes_on)
            place, first = points_of(before[-1])[1][-1], [points_of(message)[1][0] for message in since[:2]]
            starts = np.abs(np.array(first) - place).max(axis=1).min() < 0.05
            assert starts or arm.monitor.missed > missed[group], "it starts from where the arm is"
            arm.monitor.leaps()  # one that left late is judged by its rest, above
        went_on(pair)
    leave(on_the_machine, begun)


def test_whose_time_it_is_does_not_change_under_way(running):
    [refused] = running.set(use_sim_time=False)
    assert not refused.successful and "use_sim_time: deactivate /xvla first" in refused.reason
    went_on(running)
