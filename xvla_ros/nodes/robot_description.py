"""The robot's URDF as ``robot_state_publisher`` offers it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from rclpy.node import Node
from std_msgs.msg import String

from xvla_ros.nodes import qos
from xvla_ros.robots.kinematics import RobotDescription

TOPIC = "robot_description"
# A node that has just come up has not yet found who else is there; a latched message follows its publisher at once.
DISCOVERY_S, ARRIVAL_S = 0.5, 1.0


class DescriptionTopics:
    """Hears ``robot_description`` for robots of several namespaces.

    The relative topic, which robots without a namespace of their own have, is heard from the making of this on, so that
    discovery has begun when it is asked for; those of others from when they are first asked for.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._heard = {"": _DescriptionTopic(node, TOPIC)}

    def newest(self, namespaces: Iterable[str]) -> dict[str, RobotDescription | None]:
        """Return what was published last for each namespace; see ``_DescriptionTopic.newest`` for the waits."""
        wanted = list(dict.fromkeys(namespaces))
        for namespace in wanted:
            if namespace not in self._heard:
                self._heard[namespace] = _DescriptionTopic(self._node, f"{namespace}/{TOPIC}")
        return {namespace: self._heard[namespace].newest() for namespace in wanted}


class _DescriptionTopic:
    """Hears one topic. The callback runs in the node's executor; ``newest`` is for another thread."""

    def __init__(self, node: Node, topic: str) -> None:
        self._node = node
        self._since = time.monotonic()
        self._heard = threading.Event()
        self._text = ""
        self._subscription = node.create_subscription(String, topic, self._on_text, qos.LATCHED)

    def newest(self) -> RobotDescription | None:
        """Return what was published last, None where nobody publishes.

        Waits for a publisher no longer than this is young, and for the message of one that is there no longer than
        ``ARRIVAL_S``.
        """
        self._heard.wait(max(0.0, self._since + DISCOVERY_S - time.monotonic()))
        topic = self._subscription.topic_name
        if not self._node.count_publishers(topic):
            return None
        if not self._heard.wait(ARRIVAL_S):
            self._node.get_logger().warning(f"{topic} has a publisher, but nothing came within {ARRIVAL_S:g} s")
            return None
        return RobotDescription(self._text, topic)

    def _on_text(self, message: String) -> None:
        if message.data.strip():
            self._text = message.data
            self._heard.set()
