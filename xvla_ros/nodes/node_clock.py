"""The clocks of a node, as control reads them."""

from __future__ import annotations

import threading
import time

from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node

from xvla_ros.types import NS


class NodeClock:
    """ROS time of a node, which follows ``/clock`` under ``use_sim_time``, and the steady clock beside it.

    Attributes:
        paced: simulated time waits for this node, so what takes long here takes no time there: the steady clock is
            simulated time too.
        alone: the simulation is gone, so that nothing else counts time: the steady clock is the machine's again.
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
        with self._lock:  # it never goes back, though a simulation that begins again does
            before, self._newest = self._newest, (self.ros_ns(), time.monotonic_ns())
            gained = self._newest[1] - before[1] if self.alone else self._newest[0] - before[0]
            self._gained += max(0, gained)
            return self._gained / NS
