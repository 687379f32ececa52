# SPDX-License-Identifier: Apache-2.0
"""The node ``xvla_play``: plays a bag to a policy node, with its clock, and writes down what that answers.

Published are the cameras and joints of the profile, byte by byte as they were recorded, ``/clock``, and the instruction
of each episode when it begins. Recorded commands are not published. The policy's commands go nowhere: this node is the
only one that listens to them, under ``/replay``, so that the policy finds its controllers there.

Run it with ``python -m xvla_ros.nodes.play_node --ros-args -p bag:=… -p profile:=… -p robot:=… -p chunks_file:=…``, and
the policy node with ``replay_settings`` and ``remapped_commands``; ``xvla replay --live`` and ``replay.launch.py`` do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from xvla_ros.errors import BagError, EvaluationError, Interrupted, MessageError
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.parameters import given_parameters
from xvla_ros.nodes.policy.commands import command_type
from xvla_ros.nodes.process import StopRequest
from xvla_ros.recordings.bag_files import BagMessage
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import peek_stamp, read_string
from xvla_ros.recordings.marks import EPISODE_TOPIC, read_mark
from xvla_ros.recordings.observations import BagClock
from xvla_ros.types import NS

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

POLICY = "/xvla"
REPLAY = "/replay"  # namespace of the commands
READY_LIMIT, ANSWER_LIMIT = 900.0, 10.0  # s on the steady clock: loading a policy; its last chunk
CLOCK_STEP = NS // 100
LONGEST_PAUSE = 2.0  # s; a longer pause in the bag is cut to this
RELIABLE = QoSProfile(depth=100)  # a policy's best-effort subscription matches it as well


class PlayNode(Node):
    """Plays one bag once."""

    def __init__(self, bag: Path, profile: Profile, rate: float, stop: StopRequest) -> None:
        # Imported here: the generated messages need the built package, and a plain import of this module does not.
        from xvla_ros.msg import ActionChunk, PolicyStatus

        super().__init__("xvla_play")
        self._bag, self._profile, self._rate, self._stop = bag, profile, rate, stop
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self.chunks: list[Any] = []
        self._said = ""
        self._time = 0
        self._clock_topic = self.create_publisher(Clock, "/clock", qos.EVENTS)
        self._outlets: dict[str, Any] = {}
        for slot in profile.cameras.slots:
            camera = profile.cameras.by_name[slot]
            kind = CompressedImage if camera.transport == "compressed" else Image
            self._outlets.setdefault(camera.topic, None)
            self._outlets[camera.topic] = self._outlets[camera.topic] or self.create_publisher(
                kind, camera.topic, RELIABLE
            )
        for topic in profile.joints.topics:
            self._outlets[topic] = self.create_publisher(JointState, topic, RELIABLE)
        base = f"{POLICY}/{profile.name}"
        self._instruction = self.create_publisher(String, f"{base}/instruction", qos.LATCHED)
        self.create_subscription(ActionChunk, f"{base}/action_chunk", self.chunks.append, qos.EVENTS)
        self.create_subscription(PolicyStatus, f"{base}/status", self._on_status, qos.LATCHED)
        for group in profile.commands.groups:
            topic = REPLAY + profile.commands.by_name[group].topic
            self.create_subscription(command_type(profile, group), topic, lambda message: None, qos.COMMAND)
        self._state = self.create_client(GetState, f"{POLICY}/get_state")

    def play(self) -> None:
        """Wait for the policy, then play.

        Raises:
            EvaluationError: the policy does not become active, or the bag cannot be read.
            Interrupted: by a signal.
        """
        try:
            with Bag(self._bag) as bag:
                self._prepare(bag)
                self._play(bag)
        except BagError as error:
            raise EvaluationError(f"{self._bag}: {error}") from error
        self._rest()

    def _prepare(self, bag: Bag) -> None:
        """Set the clock to the first message, and wait for the policy to be active and to listen."""
        stamped = (
            (each, stamp) for each in bag.messages(set(self._outlets)) if (stamp := self._stamp(each)) is not None
        )
        first, stamp = next(stamped, (None, 0))
        if first is None:
            raise EvaluationError(f"{self._bag}: the bag has none of the topics {', '.join(self._outlets)}")
        self._tick(BagClock().now(first.topic, first.log_time, stamp))
        self._until(self._policy_is_active, READY_LIMIT, f"{POLICY} to become active")
        wanted = list(self._outlets.values())
        self._until(
            lambda: all(outlet.get_subscription_count() for outlet in wanted),
            ANSWER_LIMIT,
            f"{POLICY} to subscribe to {', '.join(self._outlets)}",
        )

    def _play(self, bag: Bag) -> None:
        clock, begun, origin = BagClock(), time.monotonic(), self._time
        for message in bag.messages({*self._outlets, EPISODE_TOPIC}):
            if message.topic == EPISODE_TOPIC:
                self._mark(message)
                continue
            stamp = self._stamp(message)
            if stamp is None:
                continue
            now = clock.now(message.topic, message.log_time, stamp)
            if now < self._time - NS or now - self._time > LONGEST_PAUSE * NS:
                begun, origin = time.monotonic(), now  # time began again, or nothing was recorded for long
            while self._time < now and now - self._time < LONGEST_PAUSE * NS:
                step = min(now, self._time + CLOCK_STEP)
                self._spin_until(begun + (step - origin) / NS / self._rate)
                self._tick(step)
            if now < self._time or now - self._time >= LONGEST_PAUSE * NS:
                self._tick(now)
            self._outlets[message.topic].publish(message.data)

    def _mark(self, message: BagMessage) -> None:
        try:
            mark = read_mark(read_string(message.data))
        except ValueError as error:
            self._pass_over(message, error)
            return
        told = mark["event"] == "start" and mark.get("instruction")
        if told and mark.get("robot", self._profile.name) == self._profile.name:
            self._instruction.publish(String(data=str(told)))

    def _stamp(self, message: BagMessage) -> int | None:
        """Return the stamp of a message in ns; None, and say so, where it cannot be read."""
        try:
            return peek_stamp(message.data)
        except MessageError as error:
            self._pass_over(message, error)
            return None

    def _pass_over(self, message: BagMessage, error: ValueError) -> None:
        self.get_logger().warning(f"{message.topic}: the message logged at {message.log_time} ns is skipped: {error}")

    def _rest(self) -> None:
        """Let the policy finish the answer it has begun."""
        last = time.monotonic()
        heard = len(self.chunks)
        while time.monotonic() - last < 1.0 and self._time:
            self._spin(0.05)
            if len(self.chunks) > heard:
                heard, last = len(self.chunks), time.monotonic()

    def _tick(self, now: int) -> None:
        self._time = now
        self._clock_topic.publish(Clock(clock=messages.stamp_message(now)))

    def _spin_until(self, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            self._spin(max(left, 0.0))
            if left <= 0.0:
                return

    def _policy_is_active(self) -> bool:
        if not self._state.service_is_ready():
            return False
        future = self._state.call_async(GetState.Request())
        self._executor.spin_until_future_complete(future, timeout_sec=1.0)
        return bool(future.done() and future.result().current_state.id == State.PRIMARY_STATE_ACTIVE)

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._spin(0.1)
            self._tick(self._time)
            if time.monotonic() > deadline:
                raise EvaluationError(f"waited {seconds:.0f} s for {what}")

    def _spin(self, seconds: float) -> None:
        self._stop.check()
        self._executor.spin_once(timeout_sec=seconds)

    def _on_status(self, message: Any) -> None:
        self._said = f"{message.state} {message.reason} {message.detail}".strip()

    def write(self, path: Path) -> None:
        """Write the chunks that were heard.

        Raises:
            EvaluationError: there was none; what the policy said of itself.
        """
        if not self.chunks:
            raise EvaluationError(f"{POLICY} sent no chunk; its last status: {self._said or 'nothing'}")
        chunks = [messages.chunk_of(message) for message in self.chunks]
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".part")
        with draft.open("wb") as stream:
            np.savez(
                stream,
                stamps=np.array([each.stamp for each in chunks]),
                seeds=[each.seed for each in chunks],
                instructions=[each.instruction for each in chunks],
                actions=[each.actions for each in chunks],
                inference_ms=[each.inference_ms for each in chunks],
            )
        draft.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Play; return 0, or 1 after saying what failed.

    Parameters of the node: ``bag``, ``profile`` (name or file), ``robot`` (name in it), ``chunks_file``, ``rate``
    (times the recorded speed).
    """
    from xvla_ros.robots import load_profile

    stop = StopRequest()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    values = given_parameters("xvla_play_parameters")
    profile = load_profile(values["profile"])[values["robot"]]
    node = PlayNode(Path(values["bag"]), profile, float(values.get("rate", 1.0)), stop)
    try:
        node.play()
        node.write(Path(values["chunks_file"]))
    except EvaluationError as error:
        node.get_logger().error(str(error))
        return 1
    except Interrupted:
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
