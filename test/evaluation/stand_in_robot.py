# SPDX-License-Identifier: Apache-2.0
"""Stand-in for the simulation and the policy node: real rclpy publishers whose every message is known beforehand.

Joint ``i`` of each arm follows ``0.5 sin(t + i)``; commands say the same 0.1 s ahead. Used to test the watching node
alone. Time of the run is the message count, and goes no further than the watching node allows (``sim/time_limit``), so
a slow machine changes nothing but the wall time.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from xvla_ros.msg import ActionChunk, PolicyStatus
from xvla_ros.nodes import qos
from xvla_ros.nodes.messages import stamp_ns
from xvla_ros.nodes.node_clock import NO_LIMIT, TIME_LIMIT_TOPIC
from xvla_ros.robots import load_profile

ROBOT = "so101_bimanual"
STEP = 0.01  # s of ROS time per tick
FIRST_COMMAND = 1.0
INSTRUCTION = "touch the red cube"


def position(joint: int, time: float) -> float:
    """Where joint ``joint`` of an arm is at ``time`` s of ROS time, rad."""
    return 0.5 * math.sin(time + joint)


class StandInRobot(Node):
    """Publishes what sim_node and policy_node would, tick by tick, once somebody listens to all of it."""

    def __init__(self) -> None:
        super().__init__("stand_in_robot")
        self.profile = load_profile(ROBOT)[ROBOT]
        base = f"/xvla/{ROBOT}"
        self.status = self.create_publisher(PolicyStatus, f"{base}/status", qos.LATCHED)
        self.chunks = self.create_publisher(ActionChunk, f"{base}/action_chunk", qos.EVENTS)
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.EVENTS)
        names = self.profile.joints.by_name
        groups = [self.profile.commands.by_name[group] for group in self.profile.commands.groups]
        self.arms = [
            (
                [names[joint].name for joint in group.joints],
                self.create_publisher(JointState, names[group.joints[0]].topic, qos.SENSOR),
                self.create_publisher(JointTrajectory, group.topic, qos.COMMAND),
            )
            for group in groups
        ]
        cameras = self.profile.cameras
        self.cameras = [self.create_publisher(Image, cameras.by_name[c].topic, qos.SENSOR) for c in cameras.slots]
        # the last that is found: who hears it has found the others
        self.clock = self.create_publisher(Clock, "/clock", qos.SENSOR)
        of_arms = [outlet for _, *outlets in self.arms for outlet in outlets]
        self.outlets = [self.status, self.chunks, self.diagnostics, *of_arms, *self.cameras, self.clock]
        self.tick, self.allowed = 0, 0
        self.create_subscription(Header, TIME_LIMIT_TOPIC, self.on_time_limit, qos.EVENTS)
        self.create_timer(STEP, self.on_tick)

    def on_time_limit(self, message: Header) -> None:
        until = stamp_ns(message.stamp)
        if until < NO_LIMIT:  # which it says before it has heard the clock
            self.allowed = until

    def on_tick(self) -> None:
        if not self.allowed:
            if all(each.get_subscription_count() for each in self.outlets):
                self.clock.publish(Clock(clock=Time(nanoseconds=1).to_msg()))
            return
        if round((self.tick + 1) * STEP * 1e9) > self.allowed:
            # who holds time goes by /clock, the last of which may have been lost
            self.clock.publish(Clock(clock=Time(nanoseconds=round(self.tick * STEP * 1e9)).to_msg()))
            return
        self.tick += 1
        time = self.tick * STEP
        stamp = Time(nanoseconds=round(time * 1e9)).to_msg()
        self.clock.publish(Clock(clock=stamp))
        running = time >= FIRST_COMMAND
        for index, (names, states, commands) in enumerate(self.arms):
            states.publish(joint_state(names, stamp, time))
            if running and self.tick % 3 == index:
                commands.publish(command(names, time))
        if self.tick % 3 == 0:
            for view, camera in enumerate(self.cameras):
                camera.publish(picture(stamp, view, self.tick))
        if self.tick % 10 == 0:
            self.status.publish(self.report(running, time, stamp))
        if running and self.tick % 50 == 0:
            self.chunks.publish(self.chunk(stamp, time))
        if self.tick % 100 == 50:
            self.diagnostics.publish(self.diagnosis())

    def report(self, running: bool, time: float, stamp: Any) -> PolicyStatus:
        held = 3.0 <= time < 4.0  # longer than what a watching node loses that stands for a while
        message = PolicyStatus(robot=ROBOT, instruction=INSTRUCTION, state="running" if running else "inactive")
        message.header.stamp = stamp
        if held:
            message.state, message.reason, message.detail = "holding", "camera_stale", "front: 0.31 s old"
        message.holds = int(time >= 3.0)
        return message

    def chunk(self, stamp: Any, time: float) -> ActionChunk:
        times = [0.0333 * (index + 1) for index in range(30)]
        joints = self.profile.joints.ordered
        rows = [
            [position(i % 6, time + t) * joint.scale + joint.offset for i, joint in enumerate(joints)] for t in times
        ]
        actions = np.array(rows, np.float32).ravel().tolist()
        inference = 80.0 + self.tick % 7
        message = ActionChunk(robot=ROBOT, waypoints=30, width=12, times=times, actions=actions, inference_ms=inference)
        message.header.stamp = stamp
        message.action_mode, message.instruction = ROBOT, INSTRUCTION
        return message

    def diagnosis(self) -> DiagnosticArray:
        values = {"trained": "false", "checkpoint": "", "overhead_ms_p50": "3.1", "overhead_ms_p95": "4.0"}
        values |= {"overhead_ms_p99": "5.5", "overhead_ms_max": "9.0"}
        for camera in self.profile.cameras.slots:
            values |= {f"frames_received/{camera}": "99", f"first_stamp/{camera}": "0", f"last_stamp/{camera}": "99"}
        items = [KeyValue(key=key, value=value) for key, value in values.items()]
        return DiagnosticArray(status=[DiagnosticStatus(name=f"xvla: {ROBOT}", values=items)])


def joint_state(names: list[str], stamp: Any, time: float) -> JointState:
    message = JointState(name=names, position=[position(joint, time) for joint in range(len(names))])
    message.header.stamp = stamp
    return message


def command(names: list[str], time: float) -> JointTrajectory:
    message = JointTrajectory(joint_names=names)
    for ahead in (0.1, 0.2, 0.5):
        point = JointTrajectoryPoint(positions=[position(joint, time + ahead) for joint in range(len(names))])
        point.time_from_start = Duration(seconds=ahead).to_msg()
        message.points.append(point)
    return message


def picture(stamp: Any, view: int, tick: int) -> Image:
    image = np.zeros((256, 256, 3), np.uint8)
    image[..., view] = np.linspace(30, 220, 256, dtype=np.uint8)
    image[100:156, tick % 200 : tick % 200 + 56] = 255
    message = Image(height=256, width=256, encoding="rgb8", step=768)
    message.header.stamp = stamp
    message._data.frombytes(image.tobytes())  # the setter of data would look at every byte
    return message


def main() -> int:
    rclpy.init(args=sys.argv)
    node = StandInRobot()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
