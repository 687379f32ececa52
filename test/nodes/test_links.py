# SPDX-License-Identifier: Apache-2.0
"""The topics of a robot are made once, at configure, and what is sent there is not late."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from xvla_ros import ros_env

ros_env.prepare()
rclpy = pytest.importorskip("rclpy")


def test_activation_keeps_the_links_that_configure_made(ros_domain):
    from xvla_ros.nodes.policy.node import PolicyNode

    rclpy.init(domain_id=ros_domain)
    node = PolicyNode()
    try:
        node.set_up()
        made = list(node._links)
        node.start()
        assert made
        assert all(now is before for now, before in zip(node._links, made, strict=True))
        node.halt()
        node.tear_down()
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def paced(ros_domain):
    """A node whose simulated time waits for it, set up, and a participant that hears how far it may run."""
    from std_msgs.msg import Header

    from xvla_ros.nodes import node_clock, qos
    from xvla_ros.nodes.policy.node import PolicyNode

    rclpy.init(domain_id=ros_domain, args=["xvla", "--ros-args", "-p", "use_sim_time:=true", "-p", "paced:=true"])
    node, simulation = PolicyNode(), rclpy.create_node("sim")
    node.hear = lambda: simulation.create_subscription(Header, node_clock.TIME_LIMIT_TOPIC, lambda _: None, qos.EVENTS)
    try:
        node.set_up()
        yield node
        node.halt()
        node.tear_down()
    finally:
        simulation.destroy_node()
        node.destroy_node()
        rclpy.try_shutdown()


def test_a_node_that_nobody_waits_for_is_not_activated(paced, monkeypatch):
    from xvla_ros.nodes.lifecycle import TransitionError
    from xvla_ros.nodes.policy import node as policy_lifecycle

    monkeypatch.setattr(policy_lifecycle, "SIMULATION_WAIT_S", 0.0)
    with pytest.raises(TransitionError, match="no simulation of xvla_ros subscribes to sim/time_limit"):
        paced.start()


def test_a_chunk_that_is_wanted_no_longer_holds_no_time(paced):
    """Nobody asks for it any more, after a stop for one; time would stand for good."""
    paced.hear()
    paced.start()
    (link,) = paced._links
    paced._engine.stop()
    link.pilot.instruction = "wave"
    assert link.pilot.wants_chunk()
    link._due_ns = -(10**10)
    held = link.allowed_until()
    link.pilot.instruction = ""
    assert held < 0 < link.allowed_until()
    link._due_ns = -(10**10)
    link.tick()
    assert link._due_ns is None


def test_use_sim_time_is_not_changed_under_an_active_node_that_time_waits_for(paced, monkeypatch):
    from rclpy.parameter import Parameter

    monkeypatch.setattr(paced, "state_label", lambda: "active")
    answer = paced._on_set_parameters([Parameter("use_sim_time", value=False)])
    assert not answer.successful and "deactivate /xvla first" in answer.reason


class SlowOutlet:
    """A command topic, and how long it takes to publish there."""

    def __init__(self, clock):
        self.topic_name, self.clock, self.takes, self.sent, self.heard = "/arm", clock, 0.0, [], 1

    def get_subscription_count(self):
        return self.heard

    def publish(self, message):
        self.sent.append(np.array([point.positions for point in message.points]))
        self.clock.now += self.takes


@pytest.fixture
def slow_pair(ros_domain):
    """The link of a pair of arms that stand, with a plan, and its two outlets."""
    from hand_clock import SECOND, HandClock

    from xvla_ros.nodes.policy.robot_link import RobotLink
    from xvla_ros.robots import load_profile
    from xvla_ros.robots.actions import Trajectory

    rclpy.init(domain_id=ros_domain)
    node, clock, profile = rclpy.create_node("xvla"), HandClock(), load_profile("so101_bimanual")["so101_bimanual"]
    link = RobotLink(node, profile, clock, "wave")
    outlets = [SlowOutlet(clock) for _ in profile.commands.groups]
    link._publishers.update(zip(profile.commands.groups, outlets, strict=True))
    link.pilot.builder.check = lambda *_: None
    joints = list(enumerate(profile.joints.ordered))

    def tick():
        clock.now += 1 / 30
        last = link.pilot.controller.last_window
        arm = np.zeros(len(joints)) if last is None else last.position_at(clock.ros_ns())
        for topic in {joint.topic for _, joint in joints}:
            names, columns = zip(*[(joint.name, k) for k, joint in joints if joint.topic == topic], strict=True)
            link.pilot.add_joints(topic, clock.ros_ns(), names, arm[list(columns)])
        link.tick()

    link.pilot.controller.start()
    for _ in range(30):
        tick()
    times = clock.ros_ns() + np.round(np.linspace(0.1, 2.0, 20) * SECOND).astype(np.int64)
    path = np.linspace(0.0, 0.6, 20)[:, None] + np.zeros(12)
    controller = link.pilot.controller
    assert controller.accept(Trajectory(profile.name, profile.joints.policy_order, times, path), controller.ask())
    tick.link = link
    yield tick, outlets
    link.stop()
    for group in profile.commands.groups:
        del link._publishers[group]
    link.close()
    node.destroy_node()
    rclpy.try_shutdown()


def test_an_arm_whose_windows_are_too_late_gets_its_next_one_from_where_it_is(slow_pair):
    """The other got its own, and goes first the next time no more."""
    tick, (left, right) = slow_pair
    left.takes = right.takes = 0.06  # the second is always too late
    for _ in range(6):
        tick()
    assert len(left.sent) == len(right.sent) == 3 * 2  # each with its rest
    tick()
    for outlet in (left, right):
        for before, after in zip(outlet.sent, outlet.sent[1:], strict=False):
            near = np.abs(before - after[0]).max(axis=1).min()
            assert near < 0.03, "it begins on the way of the one that came before"
    assert np.abs(left.sent[0][0]).max() < 0.02 and np.abs(right.sent[0][0]).max() < 0.02


def test_of_a_window_whose_sending_was_paused_only_the_rest_counts(slow_pair):
    """It may have left before the pause or after it; sent late, it would lead the arm back to where it was due."""
    tick, (left, right) = slow_pair
    for _ in range(12):
        tick()
    sent = len(right.sent)
    left.takes = 0.75  # longer than a window: the arm stands at its end
    tick()
    late, rest = left.sent[-2:]
    assert np.abs(late - late[-1]).max() > 0.08
    np.testing.assert_allclose(rest, np.broadcast_to(late[-1], rest.shape), atol=1e-9)
    assert len(right.sent) == sent, "it got none"
    left.takes = 0.0
    for _ in range(8):  # the pause, and until the time is believed again
        tick()
    np.testing.assert_allclose(left.sent[-1][0], late[-1], atol=0.01)


def test_a_motion_goes_on_by_the_window_whose_sending_was_paused(slow_pair):
    tick, (left, _) = slow_pair
    for _ in range(12):
        tick()
    left.takes = 0.2
    tick()
    late, rest = left.sent[-2:]  # 6 command periods lie between them
    np.testing.assert_allclose(rest[:-6], late[6:], atol=1e-6)


def test_no_rest_is_sent_while_ros_time_has_not_come_along(slow_pair, monkeypatch):
    """Under /clock the process wakes before it hears what time it is; a path seen from then would lead back."""
    tick, (left, _) = slow_pair
    for _ in range(12):
        tick()
    clock, sent = tick.link._clock, len(left.sent)
    left.takes, stale = 0.75, clock.ros_ns() + round(1e9 / 30)
    monkeypatch.setattr(clock, "ros_ns", lambda: stale)
    tick()
    assert len(left.sent) == sent + 1


def test_a_controller_that_is_back_gets_nothing_until_it_surely_hears(slow_pair):
    """It is seen before what is sent reaches it: the arm would begin with the second or third window of a motion."""
    tick, (left, right) = slow_pair
    left.heard = 0
    for _ in range(40):
        tick()
    left.heard, sent = 1, len(right.sent)
    for _ in range(3):
        tick()
    assert len(right.sent) == sent
    assert tick.link.status.reason == "controller_lost"
    tick()
    assert tick.link.status.reason != "controller_lost"
