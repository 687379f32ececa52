# SPDX-License-Identifier: Apache-2.0
"""Processes of a graph as a user starts them, and a node that hears what their robot does."""

import signal
import subprocess
import time

import numpy as np
import rclpy
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from xvla_ros import ros_env
from xvla_ros.msg import PolicyStatus
from xvla_ros.nodes import messages, qos

DEADLINE = 300.0  # ends what hangs
STILL = 0.03  # rad/s


class Probe:
    """One robot's joints and its policy's status, and the processes it was told to start.

    Attributes:
        status: the newest, None before the first.
        fastest: rad/s, of any joint between two joint states.
    """

    def __init__(self, domain, profile):
        self._environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        self._processes, self.status, self.fastest = [], None, 0.0
        self._joints, self._moved, self._newest = {}, 0, (0, 0)
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("probe", context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        base = f"/xvla/{profile.name}"
        self._node.create_subscription(PolicyStatus, f"{base}/status", self._on_status, qos.LATCHED)
        self._topics = len(profile.joints.topics)
        for topic in profile.joints.topics:
            self._node.create_subscription(
                JointState, topic, lambda message, info, topic=topic: self._on_joints(topic, message, info), qos.SENSOR
            )
        self._instruction = self._node.create_publisher(String, f"{base}/instruction", qos.LATCHED)

    def start(self, command):
        self._processes.append(subprocess.Popen(command, env=self._environment))
        return self._processes[-1]

    @property
    def state(self):
        """What the policy last said it does."""
        return "" if self.status is None else self.status.state

    def positions(self):
        """Every joint, rad, as heard last; waits until each was heard."""
        self.wait(lambda: len(self._joints) == self._topics, "joint states of every topic")
        return np.concatenate([position for _, position in self._joints.values()])

    def moved_last(self):
        """When a joint was last seen to move, ns of ROS time."""
        return self._moved

    def now(self):
        """ROS time in ns: of a message that was sent after this was asked."""
        asked = time.time_ns()
        self.wait(lambda: self._newest[0] > asked, "joint states")
        return self._newest[1]

    def instruct(self, text):
        self._instruction.publish(String(data=text))

    def wait(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; heard {self.status}"
            assert all(process.poll() is None for process in self._processes), f"a process ended; waited for {what}"
            self._executor.spin_once(timeout_sec=0.1)

    def close(self):
        for process in reversed(self._processes):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)  # where a test has failed
        for process in self._processes:
            process.wait(DEADLINE)
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _on_status(self, status):
        self.status = status

    def _on_joints(self, topic, message, info):
        stamp, position = messages.stamp_ns(message.header.stamp), np.array(message.position)
        before = self._joints.get(topic)
        self._joints[topic] = stamp, position
        self._newest = max(self._newest, (info["source_timestamp"], stamp))
        if before is not None and stamp > before[0]:
            speed = np.abs(position - before[1]).max() / (stamp - before[0]) * 1e9
            self.fastest = max(self.fastest, speed)
            self._moved = stamp if speed > STILL else self._moved
