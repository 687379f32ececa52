"""One robot of the policy node: its topics in, its commands out, and the engine's view of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from xvla_ros.control.clock import Clock
from xvla_ros.control.latency import LatencyWindow, Percentiles
from xvla_ros.control.robot_controller import RUNNING, ControlStatus, RobotController
from xvla_ros.control.window import CommandWindow
from xvla_ros.model.data import ActionChunk, Observation
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.commands import command_messages, command_type
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.decode import Decoder
from xvla_ros.robots.encode import StateEncoder
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tool_arm import tool_arms

from xvla_ros.msg import ActionChunk as ActionChunkMsg  # isort: skip
from xvla_ros.msg import PolicyStatus  # isort: skip

Floats = NDArray[np.float64]

STATUS_PERIOD_S = 0.1


@dataclass
class FrameCount:
    """Frames of one camera that reached the node, and the ROS stamps in ns of the first and the newest."""

    received: int = 0
    first_stamp: int = 0
    last_stamp: int = 0

    def add(self, stamp: int) -> None:
        if not self.received:
            self.first_stamp = stamp
        self.received += 1
        self.last_stamp = stamp


class RobotLink:
    """Joins a robot's topics to its ``ObservationBuilder`` and ``RobotController``.

    The inference thread calls the engine's side (``wants_chunk``, ``observe``, ``deliver``, ``policy_failed``), the
    executor calls ``tick``. What goes out is encoded for every group before any is published, so that both arms of a
    pair move together or not at all.
    """

    def __init__(
        self,
        node: Node,
        profile: Profile,
        clock: Clock,
        instruction: str = "",
        description: RobotDescription | None = None,
    ) -> None:
        arms = tool_arms(profile, description)
        self.profile = profile
        self.frames = {camera: FrameCount() for camera in profile.cameras.slots}
        self._node = node
        self._clock = clock
        self._instruction = instruction or profile.instruction
        self._encoder = StateEncoder(profile, arms)
        self._decoder = Decoder(profile, arms)
        self._builder = ObservationBuilder(profile, messages.decode_image, self._encoder)
        self._controller = RobotController(profile, clock)
        self._sending = threading.Lock()
        self._overhead = LatencyWindow()
        self._asked: tuple[int, float] = (0, 0.0)  # generation, ms spent on the observation
        self._asked_from: Floats | None = None  # where the joints were commanded to be then
        self._chunk_stamp: int | None = None
        self._lost_since: float | None = None
        self._last_status: tuple[str, str] = ("", "")
        self._status_due = 0.0
        self._group = MutuallyExclusiveCallbackGroup()
        self._publishers = self._make_publishers()
        self._subscriptions = self._make_subscriptions()
        self._timer: Any = None
        self._publish_status()

    # what the node calls

    def start(self) -> None:
        """Begin to command the robot."""
        self._controller.start()
        period, steady = 1.0 / self.profile.timing.command_rate, RosClock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(
            period, self._guarded(self.tick), callback_group=self._group, clock=steady
        )

    def stop(self) -> None:
        """Bring the arm to rest on its path and send no more."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        with self._sending:
            window = self._controller.stop()
            if window is not None:
                self._publish(window)
        self._publish_status()

    def close(self) -> None:
        """Give back every topic."""
        self.stop()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._subscriptions, self._publishers = [], {}

    @property
    def instruction(self) -> str:
        return self._instruction

    @property
    def status(self) -> ControlStatus:
        """State and counters."""
        return self._controller.status

    @property
    def inference_ms(self) -> Percentiles:
        return self._controller.inference_ms

    @property
    def overhead_ms(self) -> Percentiles:
        """Time per chunk spent outside the policy: observation built, chunk decoded, limited and sent."""
        return self._overhead.percentiles()

    # what the engine calls

    def wants_chunk(self) -> bool:
        return bool(self._instruction) and self._controller.wants_chunk()

    def observe(self) -> Observation | None:
        begun = time.perf_counter()
        window = self._controller.last_window
        now = self._clock.ros_ns()
        commanded = None if window is None else window.position_at(now)
        seen = self._builder.build(now, self._clock.steady_s(), self._instruction, commanded)
        if isinstance(seen, Fault):
            return None
        self._asked_from = self._builder.latest_positions() if commanded is None else commanded
        self._asked = self._controller.ask(), (time.perf_counter() - begun) * 1e3
        return seen

    def deliver(self, chunk: ActionChunk) -> None:
        begun = time.perf_counter()
        generation, observe_ms = self._asked
        try:
            accepted = self._controller.accept(self._decoder.decode(chunk, self._asked_from), generation)
        except ValueError as error:
            self.policy_failed(error)
            return
        if not accepted:
            return
        self._chunk_stamp = chunk.stamp
        self.tick()
        self._overhead.add(observe_ms + (time.perf_counter() - begun) * 1e3)
        self._publishers["action_chunk"].publish(messages.chunk_message(chunk))

    def policy_failed(self, error: Exception) -> None:
        self._controller.policy_failed(f"{type(error).__name__}: {error}")

    # every command period

    def tick(self) -> None:
        """Look for faults, send the next window, report."""
        now, steady = self._clock.ros_ns(), self._clock.steady_s()
        fault = self._builder.check(now, steady)
        measured = self._builder.latest_positions()
        missing = "" if self._instruction else "an instruction"
        with self._sending:
            window = self._controller.tick(measured, fault, self._controller_present(steady), waiting_for=missing)
            if window is not None:
                self._publish(window)
            self._report(steady)

    def _controller_present(self, steady: float) -> bool:
        topics = (self._publishers[group] for group in self.profile.commands.groups)
        if all(publisher.get_subscription_count() for publisher in topics):
            self._lost_since = None
            return True
        self._lost_since = self._lost_since if self._lost_since is not None else steady
        return steady - self._lost_since <= self.profile.timing.controller_timeout

    def _publish(self, window: CommandWindow) -> None:
        for name, message in command_messages(self.profile, window, self._encoder).items():
            self._publishers[name].publish(message)

    def _report(self, steady: float) -> None:
        status = self._controller.status
        edge = (status.state, status.reason)
        if edge == self._last_status and steady < self._status_due:
            return
        if edge != self._last_status:
            self._log_edge(status)
            self._last_status = edge
        # from the time it was due, or ticks that do not divide the period would stretch it
        self._status_due = max(self._status_due + STATUS_PERIOD_S, steady)
        self._publish_status()

    def _log_edge(self, status: ControlStatus) -> None:
        log = self._node.get_logger()
        if status.reason:
            log.warning(f"{self.profile.name}: {status.state}: {status.reason}: {status.detail}")
        elif status.state == RUNNING:
            log.info(f"{self.profile.name}: running: {self._instruction!r}")

    def _publish_status(self) -> None:
        publisher = self._publishers.get("status")
        if publisher is None:
            return
        status, latency = self._controller.status, self._controller.inference_ms
        now = self._clock.ros_ns()
        message = PolicyStatus(
            robot=self.profile.name, state=status.state, reason=status.reason, detail=status.detail,
            instruction=self._instruction, chunks=status.chunks, trajectories=status.trajectories,
            dropped_chunks=status.dropped_chunks, holds=status.holds, limited_points=status.limited_points,
        )
        message.header.stamp = messages.stamp_message(now)
        message.observation_age = float("nan") if self._chunk_stamp is None else (now - self._chunk_stamp) / 1e9
        message.inference_p50_ms = latency.p50 if status.chunks else float("nan")
        message.inference_p99_ms = latency.p99 if status.chunks else float("nan")
        publisher.publish(message)

    # topics

    def _make_publishers(self) -> dict[str, Any]:
        base, create = f"~/{self.profile.name}", self._node.create_publisher
        publishers = {
            "action_chunk": create(ActionChunkMsg, f"{base}/action_chunk", qos.EVENTS),
            "status": create(PolicyStatus, f"{base}/status", qos.LATCHED),
        }
        for name in self.profile.commands.groups:
            topic = self.profile.commands.by_name[name].topic
            publishers[name] = create(command_type(self.profile, name), topic, qos.COMMAND)
        return publishers

    def _make_subscriptions(self) -> list[Any]:
        subscribe = partial(self._node.create_subscription, callback_group=self._group)
        on_instruction = self._guarded(self._on_instruction)
        made = [subscribe(String, f"~/{self.profile.name}/instruction", on_instruction, qos.LATCHED)]
        for camera in self.profile.cameras.slots:
            source = self.profile.cameras.by_name[camera]
            kind = CompressedImage if source.transport == "compressed" else Image
            made.append(subscribe(
                kind, source.topic, self._guarded(partial(self._on_image, camera)), qos.SENSOR, raw=True))
        for topic in dict.fromkeys(joint.topic for joint in self.profile.joints.ordered):
            made.append(subscribe(JointState, topic, self._guarded(partial(self._on_joints, topic)), qos.SENSOR))
        return made

    def _on_instruction(self, message: String) -> None:
        text = message.data.strip()
        if not text:
            self._node.get_logger().warning(
                f"{self.profile.name}: ignored an empty instruction; still doing {self._instruction!r}")
        elif text != self._instruction:
            self._instruction = text
            self._node.get_logger().info(f"{self.profile.name}: new instruction {text!r}")

    def _on_image(self, camera: str, serialized: bytes) -> None:
        stamp = messages.peek_stamp(serialized)
        self.frames[camera].add(stamp)
        self._builder.add_image(camera, stamp, serialized, self._clock.steady_s())

    def _on_joints(self, topic: str, message: JointState) -> None:
        stamp, names, positions = messages.joint_positions(message)
        self._builder.add_joints(topic, stamp, names, positions, self._clock.steady_s())

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """The callback, with whatever it raises logged: rclpy would end the executor and with it the node."""
        def run(*args: Any) -> None:
            try:
                callback(*args)
            except Exception as error:
                self._node.get_logger().error(
                    f"{self.profile.name}: {type(error).__name__}: {error}", throttle_duration_sec=1.0)
        return run
