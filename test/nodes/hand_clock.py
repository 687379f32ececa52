# SPDX-License-Identifier: Apache-2.0
"""A clock that a test sets, for a part of the node that is looked at alone."""

from rclpy.clock import Clock, ClockType

SECOND = 1_000_000_000


class HandClock:
    """ROS time and the steady clock at once, in s."""

    paced = False

    def __init__(self):
        self.now = 1000.0
        self.of_timers = Clock(clock_type=ClockType.STEADY_TIME)

    def ros_ns(self):
        return round(self.now * SECOND)

    def steady_s(self):
        return self.now
