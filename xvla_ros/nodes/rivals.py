"""Who publishes a topic, and whether somebody else commands the same controllers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.node import Node

from xvla_ros.control.state import CONTROLLER_LOST
from xvla_ros.observation.faults import Fault

POLL_PERIOD_S = 0.2
UNKNOWN_NODE = "_NODE_NAME_UNKNOWN_"  # rmw's, of an endpoint whose node has not been discovered yet


class Rivals:
    """Watches the command topics of one robot for publishers that are not its own.

    A node of the same name is a rival too, so publishers are counted and names serve to tell who it is. Counting
    takes 3 µs a topic, asking for names 20 µs; both read what discovery has found already.

    Args:
        node: whose graph is looked at.
        publishers: the robot's own, by command group.
    """

    def __init__(self, node: Node, publishers: Mapping[str, Any]) -> None:
        self._node = node
        self._own: dict[str, int] = {}
        for publisher in publishers.values():
            self._own[publisher.topic_name] = self._own.get(publisher.topic_name, 0) + 1
        self._due_s = 0.0
        self._fault: Fault | None = None
        self._awaits_names = True

    def fault(self, steady_s: float) -> Fault | None:
        """What is wrong on the command topics at steady time ``steady_s``; looked up anew a few times a second."""
        if steady_s >= self._due_s:
            self._due_s = steady_s + POLL_PERIOD_S
            self._fault = self._look()
        return self._fault

    def _look(self) -> Fault | None:
        shared = [topic for topic, own in self._own.items() if self._node.count_publishers(topic) > own]
        if not shared:
            self._awaits_names = True
            return None
        rivals = {topic: self._rivals_on(topic) for topic in shared}
        if self._awaits_names and not all(rivals.values()):
            self._awaits_names = False  # a publisher is discovered before its node; they have until the next look
            return self._fault
        said = [f"{', '.join(names) or 'somebody'} also publishes {topic}" for topic, names in rivals.items()]
        return Fault(CONTROLLER_LOST, f"{'; '.join(said)}; stop it, or set safety.exclusive false")

    def _rivals_on(self, topic: str) -> list[str]:
        """Names of the nodes that publish there beside this one, as far as they are known."""
        ours = (self._node.get_name(), self._node.get_namespace())
        names, twins = set(), 0
        for endpoint in self._node.get_publishers_info_by_topic(topic):
            if (endpoint.node_name, endpoint.node_namespace) == ours:
                twins += 1
            elif endpoint.node_name != UNKNOWN_NODE:
                names.add(f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}")
        if twins > self._own[topic]:
            names.add(f"a second {ours[1].rstrip('/')}/{ours[0]}")
        return sorted(names)


def publishers_of(node: Node, topic: str) -> list[str]:
    """Full names of the nodes that publish a topic, as far as they are known."""
    return sorted({f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"
                   for endpoint in node.get_publishers_info_by_topic(topic)
                   if endpoint.node_name != UNKNOWN_NODE})
