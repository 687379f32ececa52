# SPDX-License-Identifier: Apache-2.0
"""The node ``xvla_view``: shows what one robot sees, does and plans, in the Rerun viewer or on a page. It only listens.

``xvla view`` runs it. It publishes on no topic of the robot and asks no service, so it may come and go while the robot
moves; but for a page that takes instructions, stop and clear (``xvla view --web --control``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from xvla_ros.errors import KinematicsError, MessageError
from xvla_ros.nodes import messages, qos
from xvla_ros.observation.images import COMPRESSED, view_of
from xvla_ros.recordings.marks import EPISODE_TOPIC, read_mark
from xvla_ros.robots.actions import Decoder, Trajectory
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera

from xvla_ros.msg import ActionChunk, EpisodeOutcome, PolicyStatus  # isort: skip

if TYPE_CHECKING:
    from xvla_ros.nodes.web_view import Request

SPIN_S = 0.1
SIMULATION = "/sim"


class Stream(Protocol):
    """Takes what is seen of a robot: ``RerunStream``, ``WebStream``."""

    def picture(self, camera: str, stamp: int, jpeg: bytes) -> None: ...
    def executed(self, joint: str, stamp: int, position: float) -> None: ...
    def predicted(self, path: Trajectory) -> None: ...
    def status(self, stamp: int, state: str, reason: str, detail: str, instruction: str) -> None: ...
    def episode(self, key: str, instruction: str, outcome: str) -> None: ...
    def flush(self) -> None:
        """Show what has been gathered."""


class Controls:
    """Carries out what a browser asks for: an instruction, stop, clear.

    Args:
        node: that publishes and asks.
        policy: absolute name of the policy node.
        robot: the robot's name.
    """

    def __init__(self, node: Node, policy: str, robot: str) -> None:
        self._say = node.create_publisher(String, f"{policy}/{robot}/instruction", qos.LATCHED)
        self._services = {
            "stop": node.create_client(Trigger, f"{policy}/stop"),
            "clear": node.create_client(Trigger, f"{policy}/clear_stop"),
        }

    def carry_out(self, request: Request) -> None:
        """Do it; the request is answered, where a service is asked once that has answered. No request ends the node."""
        try:
            self._carry_out(request)
        except Exception as error:
            request.answer(False, f"{request.do} failed: {type(error).__name__}: {error}")

    def _carry_out(self, request: Request) -> None:
        if request.do == "instruction":
            listeners = self._say.get_subscription_count()
            self._say.publish(String(data=request.text))
            sent = f"“{request.text}” was sent"
            unheard = f"{sent}, but no node listens on {self._say.topic_name}: is the policy node running?"
            request.answer(listeners > 0, sent if listeners else unheard)
            return
        client = self._services[request.do]
        if not client.service_is_ready():
            request.answer(False, f"no node offers the service {client.srv_name}: is the policy node running?")
            return
        client.call_async(Trigger.Request()).add_done_callback(partial(_pass_on, request))


def _pass_on(request: Request, future: Any) -> None:
    answer = future.result()
    done = "stopped" if request.do == "stop" else "cleared"
    request.answer(bool(answer.success), answer.message or (done if answer.success else "the node gave no reason"))


class ViewNode(Node):
    """Subscribes to one robot's topics and hands the messages on to a stream.

    Args:
        profile: the robot.
        stream: takes them.
        rate: pictures a second and camera.
        policy: absolute name of the policy node.
        requests: of browsers, to be carried out; None where nothing is.
    """

    def __init__(
        self,
        profile: Profile,
        stream: Stream,
        rate: float,
        policy: str = "/xvla",
        requests: SimpleQueue[Request] | None = None,
    ) -> None:
        super().__init__("xvla_view")
        self._requests = requests
        self._controls = None if requests is None else Controls(self, policy, profile.name)
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
        outcomes = f"{SIMULATION}/{profile.name}/outcome"
        self.create_subscription(EpisodeOutcome, outcomes, self._on_outcome, qos.LATCHED)
        self.create_subscription(String, EPISODE_TOPIC, self._on_mark, qos.EVENTS)
        self._marks = 0
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

    def _on_outcome(self, message: EpisodeOutcome) -> None:
        outcome = "in progress"
        if message.over:
            outcome = "succeeded" if message.success else message.reason.replace("_", " ")
        self._stream.episode(f"{message.task} {message.episode}", message.instruction, outcome)

    def _on_mark(self, message: String) -> None:
        try:
            mark = read_mark(message.data)
        except MessageError as error:
            self.get_logger().warning(f"an episode marker is not shown: {error}", throttle_duration_sec=5.0)
            return
        if mark.get("robot") != self._profile.name:
            return
        self._marks += mark["event"] == "start"
        success = mark.get("success")
        judged = "ended" if success is None else "succeeded" if success else "failed"
        outcome = {"start": "in progress", "end": judged, "discard": "discarded"}[mark["event"]]
        self._stream.episode(f"recorded {self._marks}", str(mark.get("instruction", "")), outcome)

    def carry_out(self) -> None:
        """Do what browsers have asked for since the last call."""
        while self._controls is not None and self._requests is not None and not self._requests.empty():
            self._controls.carry_out(self._requests.get())

    def _show_pictures(self) -> None:
        for picture in self._polled.pictures():
            self._stream.picture(picture.camera, picture.stamp, picture.encoded)
        self._stream.flush()


def serve(
    profile: Profile,
    stream: Stream,
    stop: Callable[[], bool],
    *,
    rate: float,
    policy: str,
    duration: float | None = None,
    requests: SimpleQueue[Request] | None = None,
) -> int:
    """Show a robot until ``stop`` says so, or for ``duration`` s; return how many chunks were shown."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = ViewNode(profile, stream, rate, policy, requests)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    end = None if duration is None else time.monotonic() + duration
    try:
        while not stop() and (end is None or time.monotonic() < end):
            executor.spin_once(timeout_sec=SPIN_S)
            node.carry_out()
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
