# SPDX-License-Identifier: Apache-2.0
"""A graph for the tests of ``xvla check``: publishes and subscribes as told on the command line, as JSON.

{"publish": [[topic, type, reliability, hz, traits]], "subscribe": [[topic, type, durability]], "clock": s or null}

``clock`` is where simulated time begins, which is then published. Traits, all of them optional:

    node       name of the publishing node (default driver)
    age        s by which the stamp lies before ROS time; null for a stamp of zero, the default
    names      of joints, with positions of 0.1
    positions  a list in the place of those
    encoding   of a picture of 8 x 6 pixels
    nan_every  each so many messages the positions are NaN, and of fewer messages a second more are
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
import time
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

WIDTH, HEIGHT = 8, 6
CLOCK_PERIOD_S = 0.005
SPOILT_S = 0.3  # at most between two messages with NaN: what was well for half a second is believed again


def message_class(kind: str) -> Any:
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


class Graph:
    """The nodes, and ROS time as they have it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._begun, self._simulated_from = time.monotonic(), plan.get("clock")
        self.nodes: dict[str, Node] = {}
        for topic, kind, reliability, hz, traits in plan["publish"]:
            self.publish(topic, kind, reliability, hz, traits or {})
        driver = self.node("driver")
        for topic, kind, durability in plan["subscribe"]:
            qos = QoSProfile(depth=1, durability=DurabilityPolicy[durability.upper()])
            driver.create_subscription(message_class(kind), topic, print, qos)
        if self._simulated_from is not None:
            clock = driver.create_publisher(Clock, "/clock", 1)
            driver.create_timer(CLOCK_PERIOD_S, lambda: clock.publish(Clock(clock=self.stamp(0.0))))

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            self.nodes[name] = rclpy.create_node(name, enable_rosout=False)
        return self.nodes[name]

    def stamp(self, age: float) -> Any:
        start = time.time() if self._simulated_from is None else self._simulated_from + time.monotonic() - self._begun
        return Time(nanoseconds=round((start - age) * 1e9)).to_msg()

    def publish(self, topic: str, kind: str, reliability: str, hz: float, traits: dict[str, Any]) -> None:
        node, message = self.node(traits.get("node", "driver")), message_class(kind)()
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
        publisher, numbers, spoilt_at = node.create_publisher(type(message), topic, qos), itertools.count(), -math.inf
        if "encoding" in traits:
            message.height, message.width, message.encoding = HEIGHT, WIDTH, traits["encoding"]
            message.step, message.data = 3 * WIDTH, bytes(3 * WIDTH * HEIGHT)
        if "names" in traits:
            message.name = traits["names"]
        positions = traits.get("positions", [0.1] * len(traits.get("names", ())))

        def send() -> None:
            nonlocal spoilt_at
            if "age" in traits and traits["age"] is not None:
                message.header.stamp = self.stamp(traits["age"])
            if "names" in traits:
                now = time.monotonic()
                is_due = now - spoilt_at > SPOILT_S
                spoilt = "nan_every" in traits and (next(numbers) % traits["nan_every"] == 0 or is_due)
                spoilt_at = now if spoilt else spoilt_at
                message.position = [math.nan] * len(positions) if spoilt else positions
            publisher.publish(message)

        if hz:
            node.create_timer(1.0 / hz, send)


def main() -> None:
    rclpy.init()
    graph = Graph(json.loads(sys.argv[1]))
    executor = SingleThreadedExecutor()
    for node in graph.nodes.values():
        executor.add_node(node)
    print("up", flush=True)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        for node in graph.nodes.values():
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
