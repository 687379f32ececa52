"""A look at the running ROS graph: who publishes and subscribes what, how often, with which quality of service.

``GraphSnapshot`` is plain data; rclpy is imported only while a snapshot is taken.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.topic_endpoint_info import TopicEndpointInfo

JOINT_STATE = "sensor_msgs/msg/JointState"
# Fast DDS announces a participant every 3 s when its first announcements were missed.
DISCOVERY_SECONDS = 4.0
_SPIN_SECONDS = 0.05


@dataclass(frozen=True)
class Endpoint:
    """One publisher or subscription of a topic.

    Attributes:
        node: full name of the node it belongs to.
        type: message type, as ``sensor_msgs/msg/Image``.
        reliability: ``reliable``, ``best_effort`` or ``unknown``.
        durability: ``volatile``, ``transient_local`` or ``unknown``.
    """

    node: str
    type: str
    reliability: str = "reliable"
    durability: str = "volatile"


@dataclass(frozen=True)
class GraphSnapshot:
    """What was seen of the graph.

    Attributes:
        topics: every topic → its message types.
        publishers, subscribers: the asked topics that have any → their endpoints.
        rates: the asked topics that are published → messages a second (wall time); 0 when none came.
        joint_names: joint state topics → names that their messages carried.
    """

    topics: Mapping[str, tuple[str, ...]]
    publishers: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    subscribers: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    joint_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def snapshot(topics: Iterable[str], seconds: float = 2.0) -> GraphSnapshot | None:
    """Watch the graph and count the messages of ``topics`` for ``seconds``.

    Subscribes with sensor-data quality of service, and publishes nothing.

    Returns:
        What was seen; None when no other node is up, or there is no ROS 2 here.
    """
    from xvla_ros.ros_env import prepare

    prepare()
    try:
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
    except ImportError:
        return None
    context = Context()
    context.init()
    try:
        node = Node("xvla_check", context=context, enable_rosout=False, start_parameter_services=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            return _watch(node, executor, sorted(set(topics)), seconds)
        finally:
            executor.shutdown()
            node.destroy_node()  # type: ignore[no-untyped-call]
    finally:
        context.try_shutdown()


def _watch(node: Node, executor: Any, topics: list[str], seconds: float) -> GraphSnapshot | None:
    def is_complete() -> bool:
        return _has_company(node) and all(_has_endpoint(node, topic) for topic in topics)

    _spin(executor, DISCOVERY_SECONDS, is_complete)
    if not _has_company(node):
        return None
    counters = [_Counter(node, topic) for topic in topics if node.get_publishers_info_by_topic(topic)]
    _spin(executor, seconds)
    own = node.get_fully_qualified_name()
    return GraphSnapshot(
        topics={name: tuple(types) for name, types in node.get_topic_names_and_types()},
        publishers=_endpoints(topics, node.get_publishers_info_by_topic, own),
        subscribers=_endpoints(topics, node.get_subscriptions_info_by_topic, own),
        rates={counter.topic: counter.rate(seconds) for counter in counters},
        joint_names={counter.topic: tuple(counter.joints) for counter in counters if counter.joints},
    )


def _has_company(node: Node) -> bool:
    return any(name != node.get_name() for name in node.get_node_names())


def _has_endpoint(node: Node, topic: str) -> bool:
    return node.count_publishers(topic) + node.count_subscribers(topic) > 0


def _spin(executor: Any, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not done():
        executor.spin_once(timeout_sec=min(left, _SPIN_SECONDS))


class _Counter:
    """Counts the messages of one topic, and collects the joint names of joint states."""

    def __init__(self, node: Node, topic: str) -> None:
        from rclpy.qos import qos_profile_sensor_data

        self.topic = topic
        self.joints: dict[str, None] = {}
        self._arrivals: list[float] = []
        for kind in sorted({info.topic_type for info in node.get_publishers_info_by_topic(topic)}):
            message = _message_class(kind)
            if message is None:
                continue
            if kind == JOINT_STATE:
                node.create_subscription(message, topic, self._on_joints, qos_profile_sensor_data)
            else:
                node.create_subscription(message, topic, self._on_bytes, qos_profile_sensor_data, raw=True)

    def rate(self, seconds: float) -> float:
        """Return messages a second."""
        if len(self._arrivals) < 2:
            return len(self._arrivals) / seconds
        return (len(self._arrivals) - 1) / max(self._arrivals[-1] - self._arrivals[0], 1e-6)

    def _on_bytes(self, _: bytes) -> None:
        self._arrivals.append(time.monotonic())

    def _on_joints(self, message: Any) -> None:
        self._arrivals.append(time.monotonic())
        self.joints.update(dict.fromkeys(message.name))


def _message_class(kind: str) -> Any:
    """Return the Python class of a message type, or None where its package is not installed."""
    package, _, name = kind.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None


def _endpoints(topics: list[str], lookup: Any, own: str) -> dict[str, tuple[Endpoint, ...]]:
    found = {topic: tuple(_endpoint(info) for info in lookup(topic)) for topic in topics}
    others = {topic: tuple(each for each in each_topic if each.node != own) for topic, each_topic in found.items()}
    return {topic: endpoints for topic, endpoints in others.items() if endpoints}


def _endpoint(info: TopicEndpointInfo) -> Endpoint:
    return Endpoint(
        node=f"{info.node_namespace.rstrip('/')}/{info.node_name}",
        type=info.topic_type,
        reliability=info.qos_profile.reliability.name.lower(),
        durability=info.qos_profile.durability.name.lower(),
    )
