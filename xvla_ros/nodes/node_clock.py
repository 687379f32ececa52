"""The clocks of a node, as control reads them."""

from __future__ import annotations

import time

from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node

from xvla_ros.control.clock import S_TO_NS


class NodeClock:
    """ROS time of a node, which follows ``/clock`` under ``use_sim_time``, and the steady clock beside it.

    Attributes:
        paced: simulated time waits for this node, so what takes long here takes no time there: the steady clock is
            simulated time too.
    """

    def __init__(self, node: Node) -> None:
        self._clock = node.get_clock()
        self._steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self.paced = False

    @property
    def of_timers(self) -> RosClock:
        """The clock that periodic work runs by: steady, so that it goes on when simulated time stands, unless paced."""
        return self._clock if self.paced else self._steady

    def ros_ns(self) -> int:
        return int(self._clock.now().nanoseconds)

    def steady_s(self) -> float:
        return self.ros_ns() / S_TO_NS if self.paced else time.monotonic()
