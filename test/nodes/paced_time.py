# SPDX-License-Identifier: Apache-2.0
"""Simulated time that a test drives: as fast as the node under test allows, and standing where the test says so."""

import threading
import time
from bisect import bisect_right
from collections import deque

from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from xvla_ros.nodes import messages, node_clock, qos
from xvla_ros.simulation.stepper import TimeLimits

STEP = 5_000_000  # ns between two messages of /clock
AHEAD_S = 0.01 + STEP / 1e9  # by which time may be beyond the command after the one that the node has seen it come to
FASTEST = 10.0  # times the machine's time, where nobody holds the simulated one
KEPT = 4096  # steps whose wall time is known
REPEAT_S = 0.1  # of /clock while it stands: its subscribers take the newest, and may have lost that


def uncertainty(timing):
    """S by which time may have gone on between the node's reading of it and what it sends."""
    return 1 / timing.command_rate + AHEAD_S


class PacedTime:
    """The time of a simulator that waits for who takes part, in a thread of its own; ``stepping`` held stops it."""

    def __init__(self, start=1000.0):
        self._ns = round(start * 1e9)
        self.stepping = threading.RLock()
        self._steps = deque([(time.time_ns(), self._ns)], maxlen=KEPT)
        self._limits = TimeLimits()
        self._changed, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="time", daemon=True)

    def join(self, node, publish, rate):
        """Publish /clock on ``node``, and call ``publish`` ``rate`` times a second."""
        self._publish, self._rate = publish, rate
        self._node, self._clock = node, node.create_publisher(Clock, "/clock", qos.EVENTS)
        self.come_back()

    def go_away(self):
        """Hear nobody any more, and let time stand, as a simulation does that has ended."""
        self.stepping.acquire()
        self._node.destroy_subscription(self._subscription)

    def come_back(self):
        topic = node_clock.TIME_LIMIT_TOPIC
        self._subscription = self._node.create_subscription(Header, topic, self._on_limit, qos.EVENTS)

    def start(self):
        self._thread.start()

    def stop(self):
        self._ended.set()
        self._thread.join()

    def ns(self):
        return self._ns

    def seconds_at(self, wall_ns):
        """The time in s when the machine's wall clock had ``wall_ns``."""
        steps = list(self._steps)
        return steps[max(bisect_right(steps, wall_ns, key=lambda step: step[0]) - 1, 0)][1] / 1e9

    @property
    def is_held(self):
        """Whether anybody lets time run only so far."""
        return bool(self._limits.holders(node_clock.NO_LIMIT))

    def forget_limits(self):
        """Go on though the node that held time is gone."""
        self._limits = TimeLimits()

    def _on_limit(self, message):
        self._limits.allow(message.frame_id, messages.stamp_ns(message.stamp))
        self._changed.set()

    def _run(self):
        frames = 0
        while not self._ended.is_set():
            if self._limits.holders(self._ns + STEP):
                if not self._changed.wait(REPEAT_S):
                    self._publish_clock()
                self._changed.clear()
                continue
            with self.stepping:
                self._ns += STEP
                self._steps.append((time.time_ns(), self._ns))
                self._publish_clock()
                if self._ns * self._rate // 10**9 > frames:
                    frames = self._ns * self._rate // 10**9
                    self._publish()
            time.sleep(STEP / 1e9 / FASTEST)

    def _publish_clock(self):
        self._clock.publish(Clock(clock=Time(nanoseconds=self._ns).to_msg()))
