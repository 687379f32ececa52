# SPDX-License-Identifier: Apache-2.0
"""The topics of a robot are made once, at configure, and what is sent there is not late."""

import sys
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize("state", ["activating", "active", "deactivating"])
def test_nothing_is_changed_under_a_node_that_is_active_or_on_the_way(paced, monkeypatch, state):
    from rclpy.parameter import Parameter

    monkeypatch.setattr(paced, "state_label", lambda: state)
    for changed in (Parameter("use_sim_time", value=False), Parameter("so101_bimanual.timing.lead", value=0.04)):
        [answer] = paced.set_parameters([changed])
        assert not answer.successful
        told = "deactivate /xvla first" if state == "active" else f"/xvla is {state}, expected inactive"
        assert answer.reason == f"{changed.name}: {told}"
    monkeypatch.setattr(paced, "state_label", lambda: "inactive")
    assert paced.set_parameters([changed])[0].successful


@pytest.mark.parametrize("exclusive", [True, False])
def test_two_robots_of_one_node_do_not_command_one_topic(ros_domain, exclusive):
    from xvla_ros.nodes.lifecycle import TransitionError
    from xvla_ros.nodes.policy.node import PolicyNode

    given = {"robots": "[one, other]", "one.like": "so101", "other.like": "so101"}
    given |= {f"{robot}.safety.exclusive": str(exclusive).lower() for robot in ("one", "other")}
    arguments = [part for name, value in given.items() for part in ("-p", f"{name}:={value}")]
    rclpy.init(domain_id=ros_domain, args=["xvla", "--ros-args", *arguments])
    node = PolicyNode()
    try:
        if exclusive:
            with pytest.raises(TransitionError, match=r"one and other both publish commands on /follower/.*namespace"):
                node._read_profiles()
        else:
            assert node._read_profiles().keys() == {"one", "other"}
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class SlowOutlet:
    """A command topic, and how long it takes to publish there."""

    def __init__(self, clock):
        self.topic_name, self.clock, self.takes, self.sent, self.heard = "/arm", clock, 0.0, [], 1

    def get_subscription_count(self):
        return self.heard

    def publish(self, message):
        points = [point.positions for point in message.points] if hasattr(message, "points") else [message.data]
        self.sent.append(np.array(points))
        self.clock.now += self.takes


@pytest.fixture
def slow_pair(ros_domain, request):
    """The link of a pair of arms that stand, with a plan, and its two outlets."""
    from hand_clock import SECOND, HandClock

    from xvla_ros.nodes.policy.robot_link import RobotLink
    from xvla_ros.robots import load_profile
    from xvla_ros.robots.actions import Trajectory

    rclpy.init(domain_id=ros_domain)
    node, clock, name = rclpy.create_node("xvla"), HandClock(), getattr(request, "param", "so101_bimanual")
    profile = load_profile(name)[name]
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


def lose_and_find(tick, outlet):
    """Let an outlet's controller be gone until that holds the robot, and come back then."""
    outlet.heard = 0
    while tick.link.status.reason != "controller_lost":
        tick()
    outlet.heard = 1


def test_a_controller_that_is_back_while_the_others_brake_gets_nothing_of_before(slow_pair):
    """Its arm never heard the motion that is braked, at least not all of it: DDS tells of a loss only after a while."""
    tick, (left, right) = slow_pair
    for _ in range(12):
        tick()
    lose_and_find(tick, left)
    before = len(left.sent), len(right.sent)
    while tick.link.status.reason == "controller_lost":
        tick()
    assert len(left.sent) == before[0] and len(right.sent) > before[1]


@pytest.mark.parametrize("slow_pair", ["so101_bimanual_forward"], indirect=True)
def test_a_deactivation_sends_no_setpoint_to_a_controller_that_is_only_just_back(slow_pair):
    from xvla_ros.nodes.policy import robot_link

    tick, (left, right) = slow_pair
    for _ in range(12):
        tick()
    lose_and_find(tick, left)
    tick()
    tick.link.stop()
    right.takes, before = 1 / 60, (len(left.sent), len(right.sent))
    robot_link.bring_to_rest([tick.link])
    assert len(left.sent) == before[0] and len(right.sent) > before[1]


@pytest.mark.parametrize("slow_pair", ["so101_bimanual_forward"], indirect=True)
@pytest.mark.parametrize("takes", [1 / 60, 0.004, 0.0, 1.0, -1.0])
def test_an_arm_that_takes_setpoints_is_led_to_rest(slow_pair, takes, monkeypatch):
    """Also where the clock runs slowly, stands or leaps: then no setpoint leaps, and the transition ends."""
    from xvla_ros.nodes.policy import robot_link

    machine = SimpleNamespace(now=0.0)  # its time passes only while the transition sleeps
    monkeypatch.setattr(
        robot_link,
        "time",
        SimpleNamespace(
            monotonic=lambda: machine.now, sleep=lambda seconds: setattr(machine, "now", machine.now + seconds)
        ),
    )
    tick, (left, right) = slow_pair
    for _ in range(12):
        tick()
    clock = left.clock
    clock.now += 1 / 30
    tick.link.stop()
    clock.now += 1 / 30
    left.takes = right.takes = takes
    robot_link.bring_to_rest([tick.link])
    most = max(joint.max_acceleration for joint in tick.link.profile.joints.ordered) / 30**2
    for outlet in (left, right):
        steps = np.diff(np.concatenate(outlet.sent), axis=0)
        fastest = np.abs(steps[:12]).max()
        assert fastest > 0.005 and np.abs(steps[12:]).max() <= fastest
        if takes in (1 / 60, 1.0):
            assert np.abs(np.diff(steps, axis=0)).max() < 1.2 * most
            assert np.abs(steps[-1]).max() < 0.1 * fastest
    assert not tick.link.is_braking
