# SPDX-License-Identifier: Apache-2.0
"""The clocks of a node, as control reads them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.timer import Timer
from std_msgs.msg import Header

from xvla_ros.nodes import messages, qos
from xvla_ros.types import NS


class NodeClock:
    """ROS time of a node, which follows ``/clock`` under ``use_sim_time``, and the steady clock beside it.

    Attributes:
        paced: simulated time waits for this node, so what takes long here takes no time there: the steady clock is
            simulated time too.
        alone: whether the simulation is gone: the steady clock is the machine's then, as nothing else counts time.
    """

    def __init__(self, node: Node) -> None:
        self._clock = node.get_clock()
        self._steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self.paced = self.alone = False
        self._lock = threading.Lock()
        self._gained, self._newest = 0, (0, time.monotonic_ns())  # ROS time and steady time of the newest reading, ns

    @property
    def of_timers(self) -> RosClock:
        """The clock that periodic work runs by: steady, so that it goes on when simulated time stands, unless paced."""
        return self._clock if self.paced else self._steady

    def ros_ns(self) -> int:
        return int(self._clock.now().nanoseconds)

    def steady_s(self) -> float:
        if not self.paced:
            return time.monotonic()
        with self._lock:  # it never goes back, though the clock of a simulation that restarts does
            before, self._newest = self._newest, (self.ros_ns(), time.monotonic_ns())
            gained = self._newest[1] - before[1] if self.alone else self._newest[0] - before[0]
            self._gained += max(0, gained)
            return self._gained / NS


TIME_LIMIT_TOPIC = "sim/time_limit"  # beside the node ``sim`` of the same namespace
REPEAT_S = 0.2  # wall time: a message that was lost, or that came before the simulation, must not stop it for good
NO_LIMIT = (2**31 - 1) * NS


class TimeLimit:
    """What one node allows.

    Args:
        node: in whose name it is published.
        until: called by the node's executor and by ``say``: the time in ns, None for no limit.
    """

    def __init__(self, node: Node, until: Callable[[], int | None]) -> None:
        self._node, self._until = node, until
        self._lock = threading.Lock()
        self._publisher = node.create_publisher(Header, TIME_LIMIT_TOPIC, qos.EVENTS)
        steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self._timer: Timer | None = node.create_timer(REPEAT_S, self.say, clock=steady)

    @property
    def is_heard(self) -> bool:
        """Whether a simulation listens, as far as discovery has found."""
        return bool(self._publisher.get_subscription_count())

    def say(self) -> None:
        """Publish what is allowed now."""
        with self._lock:
            if self._timer is not None:
                self._send(self._until())

    def close(self) -> None:
        """Hold simulated time no longer, and publish nothing more."""
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
