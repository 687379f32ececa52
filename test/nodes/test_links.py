"""The topics of a robot are made once: at configure."""

import pytest

from xvla_ros import ros_env

ros_env.prepare()
rclpy = pytest.importorskip("rclpy")


def test_activation_keeps_the_links_that_configure_made(ros_domain):
    from xvla_ros.nodes.policy_lifecycle import PolicyNode

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

    from xvla_ros.nodes import qos, time_limit
    from xvla_ros.nodes.policy_lifecycle import PolicyNode

    rclpy.init(domain_id=ros_domain, args=["xvla", "--ros-args", "-p", "use_sim_time:=true", "-p", "paced:=true"])
    node, simulation = PolicyNode(), rclpy.create_node("sim")
    node.hear = lambda: simulation.create_subscription(Header, time_limit.TOPIC, lambda _: None, qos.EVENTS)
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
    from xvla_ros.nodes import policy_lifecycle
    from xvla_ros.nodes.lifecycle import TransitionError

    monkeypatch.setattr(policy_lifecycle, "SIMULATION_WAIT_S", 0.0)
    with pytest.raises(TransitionError, match="no simulation of xvla_ros hears sim/time_limit"):
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
