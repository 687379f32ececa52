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
