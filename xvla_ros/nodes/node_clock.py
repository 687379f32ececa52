"""The clocks of a node, as control reads them."""

from __future__ import annotations

import time

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
        self.paced = False

    def ros_ns(self) -> int:
        return int(self._clock.now().nanoseconds)

    def steady_s(self) -> float:
        return self.ros_ns() / S_TO_NS if self.paced else time.monotonic()
