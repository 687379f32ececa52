"""A graph for the tests of ``xvla check``: publishes and subscribes as told on the command line, as JSON.

{"publish": [[topic, type, reliability, hz, joint names or null]], "subscribe": [[topic, type, durability]]}
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy


def message_class(kind: str) -> Any:
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def main() -> None:
    plan = json.loads(sys.argv[1])
    rclpy.init()
    node = rclpy.create_node("driver", enable_rosout=False)
    for topic, kind, reliability, hz, joints in plan["publish"]:
        message = message_class(kind)()
        if joints is not None:
            message.name = joints
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
        publisher = node.create_publisher(type(message), topic, qos)
        if hz:
            node.create_timer(1.0 / hz, lambda publisher=publisher, message=message: publisher.publish(message))
    for topic, kind, durability in plan["subscribe"]:
        qos = QoSProfile(depth=1, durability=DurabilityPolicy[durability.upper()])
        node.create_subscription(message_class(kind), topic, print, qos)
    print("up", flush=True)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
