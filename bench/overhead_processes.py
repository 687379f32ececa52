# SPDX-License-Identifier: Apache-2.0
"""The two processes that ``overhead.py`` measures: what the robot's drivers do, and the node.

    python overhead_processes.py robot TRACE
    python overhead_processes.py node TRACE POLICY

Each writes what it noted to the JSON file TRACE when it is asked to end (SIGINT). Times are in ns of the machine's
monotonic clock, which both processes read; stamps are ROS time in ns.
"""

from __future__ import annotations

import array
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.control.engine import ChunkRequest
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.joints import to_policy
from xvla_ros.types import ActionChunk, Observation

ROBOT = "so101_bimanual"
HEIGHT, WIDTH, FRAME_RATE, JOINT_RATE = 480, 640, 30.0, 100.0
EXPOSED_S = 0.01  # a frame is published this long after its stamp: exposure and read-out
WAYPOINTS = 30
EVERY_FRAME, AS_SHIPPED = "every frame", "as shipped"


class Robot:
    """Publishes three cameras and the joints, and listens to the commands, as drivers and controllers do."""

    def __init__(self) -> None:
        import rclpy
        from sensor_msgs.msg import Image, JointState
        from trajectory_msgs.msg import JointTrajectory

        from xvla_ros.nodes import qos

        rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        self._node = rclpy.create_node("drivers")
        profile = load_profile(ROBOT)[ROBOT]
        self.sent: list[tuple[int, int, int]] = []  # stamp, before the first camera's publish, before the last one's
        self.heard = 0
        # an array of bytes is the one type that a message copies as a whole
        pixels = array.array("B", np.random.default_rng(0).integers(0, 256, HEIGHT * WIDTH * 3, np.uint8).tobytes())
        self._images = []
        for slot in profile.cameras.slots:
            image = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
            image.data = pixels
            topic = profile.cameras.by_name[slot].topic
            self._images.append((self._node.create_publisher(Image, topic, qos.SENSOR), image))
        self._joints = []
        for group in profile.commands.by_name.values():
            joints = [profile.joints.by_name[joint] for joint in group.joints]
            message = JointState(name=[joint.name for joint in joints], position=[0.1] * len(joints))
            self._joints.append((self._node.create_publisher(JointState, joints[0].topic, qos.SENSOR), message))
            self._node.create_subscription(JointTrajectory, group.topic, self._hear, qos.COMMAND)

    def _hear(self, _: Any) -> None:
        self.heard += 1

    def run(self, stopped: threading.Event) -> None:
        """Publish until ``stopped``, each topic at its rate."""
        import rclpy

        def spin() -> None:
            while not stopped.is_set():
                rclpy.spin_once(self._node, timeout_sec=0.1)

        threading.Thread(target=spin, daemon=True).start()
        begun = time.monotonic()
        due: list[tuple[float, float, Callable[[], None]]] = [
            (begun, 1 / FRAME_RATE, self._publish_frames),
            (begun, 1 / JOINT_RATE, self._publish_joints),
        ]
        while not stopped.is_set():
            due.sort(key=lambda task: task[0])
            when, period, publish = due[0]
            time.sleep(max(when - time.monotonic(), 0.0))
            publish()
            due[0] = max(when + period, time.monotonic() - period), period, publish

    def _publish_frames(self) -> None:
        stamp = time.time_ns() - round(EXPOSED_S * 1e9)
        before = []
        for publisher, image in self._images:
            _set_stamp(image.header.stamp, stamp)
            before.append(time.monotonic_ns())
            publisher.publish(image)
        self.sent.append((stamp, before[0], before[-1]))

    def _publish_joints(self) -> None:
        now = time.time_ns()
        for publisher, message in self._joints:
            _set_stamp(message.header.stamp, now)
            publisher.publish(message)

    def trace(self) -> dict[str, Any]:
        """What was noted."""
        return {"sent": self.sent, "commands_heard": self.heard}


def _set_stamp(stamp: Any, time_ns: int) -> None:
    stamp.sec, stamp.nanosec = divmod(time_ns, 1_000_000_000)


class InstantPolicy:
    """Answers at once: the joints swing slowly by ROS time."""

    source = "a script"

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._profiles = profiles

    def computing(self) -> dict[str, str]:
        """Nothing is computed."""
        return {}

    def is_trained(self, domain_id: int) -> bool:
        """Always: there is nothing to train."""
        return True

    def predict(self, observations: Sequence[Observation], **_: Any) -> list[ActionChunk]:
        """One chunk for each observation."""
        return [self._answer(seen, self._profiles[seen.embodiment.robot]) for seen in observations]

    def _answer(self, seen: Observation, profile: Profile) -> ActionChunk:
        policy = profile.policy
        times = policy.first_waypoint_offset + policy.waypoint_dt * np.arange(WAYPOINTS)
        swing = 0.1 + 0.2 * np.sin(2 * np.pi * 0.3 * (seen.stamp / 1e9 + times))
        joints = np.repeat(swing[:, None], len(profile.joints.policy_order), axis=1)
        return ActionChunk.of(seen, to_policy(joints, profile).astype(np.float32))


class Notes:
    """What the node does with each frame.

    Attributes:
        received: camera → stamps.
        commands: stamp of the newest frames, when the first command was out that was computed with the chunk made from
            them, and when that chunk was asked for.
    """

    def __init__(self) -> None:
        self.received: dict[str, list[int]] = {}
        self.commands: list[tuple[int, int, int]] = []

    def trace(self) -> dict[str, Any]:
        return vars(self)


def traced_link(notes: Notes, every_frame: bool) -> type:
    """A ``RobotLink`` that takes notes; with ``every_frame`` it asks whenever all cameras have a new one."""
    from xvla_ros.nodes.policy.robot_link import RobotLink

    class TracedLink(RobotLink):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._newest: dict[str, int] = {}
            self._asked_stamp = self._asked_at = 0
            self._follows: tuple[int, int, int] | None = None
            super().__init__(*args, **kwargs)
            self._deliver, self.pilot.deliver = self.pilot.deliver, self._noted_deliver  # type: ignore[method-assign]

        def _on_image(self, camera: str, serialized: bytes) -> None:
            super()._on_image(camera, serialized)
            self._newest[camera] = self.frames[camera].last_stamp
            notes.received.setdefault(camera, []).append(self.frames[camera].last_stamp)

        def wants_chunk(self) -> bool:
            if not every_frame:
                return super().wants_chunk()
            complete = len(self._newest) == len(self.frames) and min(self._newest.values()) > self._asked_stamp
            return complete and bool(self.pilot.instruction)

        def observe(self) -> ChunkRequest | None:
            asked_at, request = time.monotonic_ns(), super().observe()
            if request is not None:
                self._asked_stamp, self._asked_at = request.observation.stamp, asked_at
            return request

        def _noted_deliver(self, request: ChunkRequest, chunk: ActionChunk) -> bool:
            taken = self._deliver(request, chunk)
            if taken:
                self._follows = chunk.stamp, self._clock.ros_ns(), self._asked_at
            return taken

        def _publish(self, window: Any, *args: Any) -> None:
            super()._publish(window, *args)
            follows = self._follows
            # a window that was worked out before the chunk was taken does not follow from it
            if follows is not None and window.stamp >= follows[1]:
                notes.commands.append((follows[0], time.monotonic_ns(), follows[2]))
                self._follows = None

    return TracedLink


def run_node(trace: Path, policy: str) -> int:
    """The policy node with an instant policy, until SIGINT."""
    from xvla_ros.nodes.policy import node as policy_lifecycle
    from xvla_ros.nodes.process import StopRequest

    stop, notes = StopRequest(), Notes()

    class ScriptedNode(policy_lifecycle.PolicyNode):
        def _load(self) -> Any:
            return InstantPolicy(self._profiles)

    policy_lifecycle.PolicyNode = ScriptedNode  # type: ignore[misc]
    policy_lifecycle.RobotLink = traced_link(notes, policy == EVERY_FRAME)  # type: ignore[misc]
    code = policy_lifecycle.serve(lambda: stop.made)
    trace.write_text(json.dumps(notes.trace()), encoding="utf-8")
    return code


def run_robot(trace: Path) -> int:
    """The drivers, until SIGINT."""
    stopped = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stopped.set())
    robot = Robot()
    robot.run(stopped)
    trace.write_text(json.dumps(robot.trace()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    role, file, *rest = sys.argv[1:]
    sys.exit(run_robot(Path(file)) if role == "robot" else run_node(Path(file), rest[0]))
