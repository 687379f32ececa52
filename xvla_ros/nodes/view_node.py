# SPDX-License-Identifier: Apache-2.0
"""The node ``xvla_view``: shows what one robot sees, does and plans in the Rerun viewer. It only listens.

``xvla view`` runs it. It publishes on no topic of the robot and asks no service, so it may come and go while the robot
moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image, JointState

from xvla_ros.errors import KinematicsError, MessageError
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.rerun_stream import RerunStream
from xvla_ros.observation.images import COMPRESSED, view_of
from xvla_ros.robots.actions import Decoder
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera

from xvla_ros.msg import ActionChunk, PolicyStatus  # isort: skip

SPIN_S = 0.1


class ViewNode(Node):
    """Subscribes to one robot's topics and hands the messages on to a stream.

    Args:
        profile: the robot.
        stream: takes them.
        rate: pictures a second and camera.
        policy: absolute name of the policy node.
    """

    def __init__(self, profile: Profile, stream: RerunStream, rate: float, policy: str = "/xvla") -> None:
        super().__init__("xvla_view")
        self.chunks = 0
        self._profile, self._stream = profile, stream
        self._decoder = self._make_decoder()
        self._positions = dict.fromkeys(profile.joints.policy_order, float("nan"))
        for topic in profile.joints.topics:
            names = {
                profile.joints.by_name[joint].name: joint
                for joint in profile.joints.policy_order
                if profile.joints.by_name[joint].topic == topic
            }
            self.create_subscription(JointState, topic, partial(self._on_joints, names), qos.SENSOR)
        base = f"{policy}/{profile.name}"
        self.create_subscription(ActionChunk, f"{base}/action_chunk", self._on_chunk, qos.EVENTS)
        self.create_subscription(PolicyStatus, f"{base}/status", self._on_status, qos.LATCHED)
        self._polled = PolledTopics(profile, "xvla_view_cameras", self.get_logger())
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.create_timer(1.0 / rate, self._show_pictures, clock=steady)

    def close(self) -> None:
        """Free both nodes."""
        self._polled.destroy_node()
        self.destroy_node()

    def _make_decoder(self) -> Decoder | None:
        try:
            return Decoder(self._profile)
        except KinematicsError as error:
            self.get_logger().warning(f"{self._profile.name}: chunks are not shown: {error}")
            return None

    def _on_joints(self, names: dict[str, str], message: JointState) -> None:
        stamp = messages.stamp_ns(message.header.stamp)
        for name, position in zip(message.name, message.position, strict=False):
            if name in names:
                self._positions[names[name]] = position
                self._stream.executed(names[name], stamp, position)

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._decoder is None:
            return
        measured = np.array(list(self._positions.values()))
        try:
            path = self._decoder.decode(messages.chunk_of(message), measured if np.isfinite(measured).all() else None)
        except ValueError as error:  # for another robot, mode or width: the node has held, and said so
            self.get_logger().warning(f"a chunk is not shown: {error}", throttle_duration_sec=5.0)
            return
        self._stream.predicted(path)
        self.chunks += 1

    def _on_status(self, message: PolicyStatus) -> None:
        stamp = messages.stamp_ns(message.header.stamp)
        self._stream.status(stamp, message.state, message.reason, message.detail, message.instruction)

    def _show_pictures(self) -> None:
        for picture in self._polled.pictures():
            self._stream.picture(picture.camera, picture.stamp, picture.encoded)
        self._stream.flush()


def serve(
    profile: Profile,
    stream: RerunStream,
    stop: Callable[[], bool],
    *,
    rate: float,
    policy: str,
    duration: float | None = None,
) -> int:
    """Show a robot until ``stop`` says so, or for ``duration`` s; return how many chunks were shown."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = ViewNode(profile, stream, rate, policy)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    end = None if duration is None else time.monotonic() + duration
    try:
        while not stop() and (end is None or time.monotonic() < end):
            executor.spin_once(timeout_sec=SPIN_S)
    except ExternalShutdownException:
        node.get_logger().info("ROS was shut down")
    finally:
        executor.shutdown()
        node.close()
        rclpy.try_shutdown()
    return node.chunks


JPEG_QUALITY = 92
LATEST = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class Picture:
    """One picture of a camera as the policy sees it: its stamp in ns of ROS time, and the picture as JPEG."""

    camera: str
    stamp: int
    encoded: bytes


class PolledTopics(Node):
    """A node that no executor spins, with a depth of one: only what is asked for is ever copied into Python.

    Args:
        profile: the robot whose cameras are meant.
        name: of the node.
        logger: takes the warning that a camera cannot be shown, once.
        node_arguments: for the node, such as ``context``.
    """

    def __init__(self, profile: Profile, name: str, logger: Any, **node_arguments: Any) -> None:
        super().__init__(name, **node_arguments)
        self._logger = logger
        self._refused: set[str] = set()
        self._cameras = {}
        for camera in profile.cameras.slots:
            source = profile.cameras.by_name[camera]
            kind = CompressedImage if source.transport == COMPRESSED else Image
            subscription = self.create_subscription(kind, source.topic, lambda _: None, LATEST)
            self._cameras[camera] = (source, subscription)

    def pictures(self) -> Iterator[Picture]:
        """Yield the newest picture of each camera that has sent one since the last call."""
        for camera, (source, subscription) in self._cameras.items():
            with subscription.handle:
                taken = subscription.handle.take_message(subscription.msg_type, True)
            encoded = self._encode(camera, source, taken[0]) if taken is not None else b""
            if encoded:
                yield Picture(camera, messages.peek_stamp(taken[0]), encoded)

    def _encode(self, camera: str, source: Camera, serialized: bytes) -> bytes:
        import cv2

        try:
            image = view_of(messages.decode_image(serialized, source), source)
        except MessageError as error:  # the others go on without this camera
            if camera not in self._refused:
                self._refused.add(camera)
                self._logger.warning(f"{camera} cannot be shown: {error}")
            return b""
        encoded: bytes = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        return encoded
