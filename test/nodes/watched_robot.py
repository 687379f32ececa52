# SPDX-License-Identifier: Apache-2.0
"""A pair of arms and its policy node as whoever looks at them hears them: published a step at a time."""

from __future__ import annotations

import threading

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState

from xvla_ros.msg import ActionChunk as ActionChunkMsg
from xvla_ros.msg import PolicyStatus
from xvla_ros.nodes import messages, qos
from xvla_ros.robots import load_profile
from xvla_ros.robots.joints import to_policy
from xvla_ros.types import ActionChunk

ROBOT = "so101_bimanual"
PROFILE = load_profile(ROBOT)[ROBOT]
SECOND = 1_000_000_000
SIZE = (24, 32)


class Robot:
    """Publishes what the pair and its policy node would, a step at a time; says who else publishes commands.

    Attributes:
        holds: whether the policy node says that it holds.
    """

    def __init__(self, domain):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = node = rclpy.create_node("robot", context=self.context)
        joints, cameras = PROFILE.joints.ordered, PROFILE.cameras
        self.states = {
            topic: node.create_publisher(JointState, topic, qos.SENSOR)
            for topic in dict.fromkeys(joint.topic for joint in joints)
        }
        self.images = {
            slot: node.create_publisher(Image, cameras.by_name[slot].topic, qos.SENSOR) for slot in cameras.slots
        }
        self.chunks = node.create_publisher(ActionChunkMsg, f"/xvla/{ROBOT}/action_chunk", qos.EVENTS)
        self.status = node.create_publisher(PolicyStatus, f"/xvla/{ROBOT}/status", qos.LATCHED)
        self.step, self.holds = 0, False
        self.now = 100 * SECOND

    def positions(self):
        return np.full(len(PROFILE.joints.policy_order), 0.001 * self.step)

    def publish(self):
        """The next step, 20 ms later; a chunk every tenth."""
        self.step += 1
        self.now += SECOND // 50
        stamp = messages.stamp_message(self.now)
        for topic, publisher in self.states.items():
            names = [joint.name for joint in PROFILE.joints.ordered if joint.topic == topic]
            message = JointState(name=names, position=self.positions()[: len(names)].tolist())
            message.header.stamp = stamp
            publisher.publish(message)
        for publisher in self.images.values():
            picture = Image(height=SIZE[0], width=SIZE[1], encoding="rgb8", step=3 * SIZE[1], data=bytes(2304))
            picture.header.stamp = stamp
            publisher.publish(picture)
        if self.step % 10 == 0:
            self.chunks.publish(messages.chunk_message(self.chunk()))
        status = PolicyStatus(robot=ROBOT, state="running", instruction="wave")
        if self.holds:
            status.state, status.reason, status.detail = "holding", "camera_stale", "front: 0.5 s old"
        status.header.stamp = stamp
        self.status.publish(status)

    def chunk(self):
        times = 0.0333 * (1 + np.arange(30))
        path = self.positions() + 0.05 * times[:, None]
        return ActionChunk(
            ROBOT, 19, "so101_bimanual", "wave", self.now, times, to_policy(path, PROFILE).astype(np.float32), 80.0, 0
        )

    def is_watched(self):
        return all(
            publisher.get_subscription_count()
            for publisher in (self.chunks, self.status, *self.states.values(), *self.images.values())
        )

    def rivals(self):
        """Publishers on the command topics."""
        topics = [PROFILE.commands.by_name[group].topic for group in PROFILE.commands.groups]
        return sum(self.node.count_publishers(topic) for topic in topics)

    def close(self):
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def spun(domain):
    """A robot whose node another thread spins; to be used as a fixture's generator."""
    made = Robot(domain)
    executor = SingleThreadedExecutor(context=made.context)
    executor.add_node(made.node)
    ended = threading.Event()
    thread = threading.Thread(target=lambda: [executor.spin_once(timeout_sec=0.05) for _ in iter(ended.is_set, True)])
    thread.start()
    yield made
    ended.set()
    thread.join()
    executor.shutdown()
    made.close()
