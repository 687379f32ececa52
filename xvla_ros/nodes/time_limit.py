"""How far a simulation of ours may run ahead of the nodes that take part in it.

Who wants to be waited for says on ``sim/time_limit`` up to when simulated time may run: a ``std_msgs/Header`` with its
name as ``frame_id`` and that time as ``stamp``. The simulation stops its clock there, so that a slow machine shows what
a fast one does, only later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node
from std_msgs.msg import Header

from xvla_ros.nodes import messages, qos

TIME_LIMIT_TOPIC = "sim/time_limit"  # beside the node ``sim`` of the same namespace
REPEAT_S = 0.2  # wall time: a message that was lost, or that came before the simulation, must not stop it for good
NO_LIMIT = (2**31 - 1) * messages.NS


class TimeLimit:
    """What one node allows.

    Args:
        node: whose name it is said in.
        until: called by the node's executor and by ``say``: the time in ns, None for no limit.
    """

    def __init__(self, node: Node, until: Callable[[], int | None]) -> None:
        self._node, self._until = node, until
        self._lock = threading.Lock()
        self._publisher = node.create_publisher(Header, TIME_LIMIT_TOPIC, qos.EVENTS)
        self._timer = node.create_timer(REPEAT_S, self.say, clock=RosClock(clock_type=ClockType.STEADY_TIME))

    @property
    def is_heard(self) -> bool:
        """Whether a simulation listens, as far as discovery has found."""
        return bool(self._publisher.get_subscription_count())

    def say(self) -> None:
        """Say what is allowed now."""
        with self._lock:
            if self._timer is not None:
                self._send(self._until())

    def close(self) -> None:
        """Hold nothing any more, and be silent."""
        with self._lock:
            if self._timer is None:
                return
            self._node.destroy_timer(self._timer)
            self._timer = None
            self._send(None)
            self._node.destroy_publisher(self._publisher)

    def _send(self, until: int | None) -> None:
        stamp = messages.stamp_message(NO_LIMIT if until is None else until)
        self._publisher.publish(Header(stamp=stamp, frame_id=self._node.get_fully_qualified_name()))
