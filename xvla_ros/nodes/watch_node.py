"""The node ``xvla_watch``: writes down what one robot, its policy and its cameras do, for the film and the report.

It measures from the first command for ``duration`` seconds of ROS time, then ends by itself. Every line it prints that
starts with ``PROGRESS`` is followed by one JSON object (``recording.read_progress``).

Joint states, commands, chunks and status are received one by one. Cameras and ``/clock`` are polled instead
(``polled_topics``), so that only the frames kept for the film are ever copied into Python, and the policy keeps its
processor time.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.commands import command_type, commanded_points
from xvla_ros.nodes.parameters import given_parameters
from xvla_ros.nodes.polled_topics import PolledTopics
from xvla_ros.nodes.recording import PROGRESS, RecordingWriter
from xvla_ros.nodes.stop_request import StopRequest
from xvla_ros.nodes.time_limit import TimeLimit

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

PROGRESS_PERIOD = 0.25
AHEAD = messages.NS // 2  # ns of simulated time: what the queues of joints and commands hold several times over
# Deeper than what the publishers keep: the watcher may be late, the count must not be.
EVERY = QoSProfile(depth=100, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
EVERY_LATCHED = QoSProfile(
    depth=100, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class WatchNode(Node):  # type: ignore[misc]
    """Records one robot of one policy node.

    Args:
        profile: the robot.
        folder: receives the recording.
        duration: seconds of ROS time to go on after the first command.
        film_rate: pictures kept per second and camera.
        policy, simulation: absolute names of their nodes; of the latter only episodes of a task are heard.
        paced: whether the simulation waits for what is written down.
    """

    def __init__(
        self, profile: Profile, folder: Path, duration: float, film_rate: float, policy: str, simulation: str,
        paced: bool = False,
    ) -> None:
        # Imported here: the generated messages need the built package, and a plain import of this module does not.
        from xvla_ros.msg import ActionChunk, PolicyStatus

        super().__init__("xvla_watch")
        self.done = False
        self._duration = int(duration * messages.NS)
        self._writer = RecordingWriter(folder)
        self._robot = profile.name
        self._now = 0
        self._start = 0
        self._counts = {"chunks": 0, "trajectories": 0}
        self._status: dict[str, str] = {"state": "", "reason": "", "detail": ""}
        self._outcome: dict[str, Any] = {}
        self._episodes: list[dict[str, Any]] = []
        for topic in sorted({joint.topic for joint in profile.joints.by_name.values()}):
            self.create_subscription(JointState, topic, partial(self._on_joints, topic), qos.SENSOR)
        self._profile = profile
        for group in profile.commands.groups:
            if profile.commands.kind_of(group).is_action:
                continue  # goals of an action are nobody's but its server's to hear
            topic, kind = profile.commands.by_name[group].topic, command_type(profile, group)
            self.create_subscription(kind, topic, partial(self._on_command, group), EVERY)
        base = f"{policy}/{profile.name}"
        self.create_subscription(ActionChunk, f"{base}/action_chunk", self._on_chunk, EVERY)
        self.create_subscription(PolicyStatus, f"{base}/status", self._on_status, qos.LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, EVERY)
        self.create_subscription(String, f"{simulation}/{profile.name}/outcome", self._on_outcome, EVERY_LATCHED)
        self._polled = PolledTopics(profile, "xvla_watch_cameras", self.get_logger())
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self._between_pictures, self._pictures_due = round(messages.NS / film_rate), 0
        self.create_timer(1.0 / film_rate, self._keep_pictures, clock=steady)
        self._limit = TimeLimit(self, self._allowed_until) if paced else None
        self.create_timer(PROGRESS_PERIOD, self._tell_progress, clock=steady)

    def close(self) -> None:
        """Finish the files and free both nodes."""
        if self._limit is not None:
            self._limit.close()
        self._writer.close()
        self._polled.destroy_node()
        self.destroy_node()

    def _time(self) -> int:
        self._now = max(self._now, self._polled.clock())
        return self._now

    def _on_joints(self, topic: str, message: Any) -> None:
        positions = [value if math.isfinite(value) else None for value in message.position]
        stamp = messages.stamp_ns(message.header.stamp)
        names = list(message.name)
        self._writer.add("joints", self._time(), topic=topic, stamp=stamp, names=names, positions=positions)

    def _on_command(self, group: str, message: Any) -> None:
        now = self._time()
        names, points = commanded_points(self._profile, group, message)
        self._start = self._start or now
        self._counts["trajectories"] += 1
        horizon = points[-1][0] if points else 0.0
        topic = self._profile.commands.by_name[group].topic
        self._writer.add("command", now, topic=topic, names=names, points=points[:2], horizon=horizon)

    def _on_chunk(self, message: Any) -> None:
        self._counts["chunks"] += 1
        self._writer.add(
            "chunk",
            self._time(),
            stamp=messages.stamp_ns(message.header.stamp),
            times=list(message.times),
            width=message.width,
            actions=[round(value, 5) if math.isfinite(value) else None for value in message.actions],
            inference_ms=message.inference_ms,
            instruction=message.instruction,
            action_mode=message.action_mode,
        )

    def _on_status(self, message: Any) -> None:
        self._status = {"state": message.state, "reason": message.reason, "detail": message.detail}
        counts = ("chunks", "trajectories", "dropped_chunks", "holds", "limited_points")
        self._writer.add(
            "status",
            self._time(),
            **self._status,
            instruction=message.instruction,
            **{name: int(getattr(message, name)) for name in counts},
        )

    def _on_outcome(self, message: Any) -> None:
        outcome: dict[str, Any] = json.loads(message.data)
        known = [(said.get("episode"), said.get("over")) for said in (self._outcome, outcome)]
        if known[0] == known[1]:
            return
        self._outcome = outcome
        self._writer.add("outcome", self._time(), **outcome)
        if outcome["over"] and self._start <= outcome["stamp"] <= self._start + self._duration:
            self._episodes.append(outcome)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith(f"xvla: {self._robot}"):
                values = {item.key: item.value for item in status.values}
                self._writer.add("diagnostics", self._time(), values=values)

    def _keep_pictures(self) -> None:
        now = self._time()
        if self._limit is not None:
            self._limit.say()
        if now < self._pictures_due:  # simulated time may run slower than the timer
            return
        self._pictures_due = max(self._pictures_due + self._between_pictures, now)
        for picture in self._polled.pictures():
            self._writer.add_image(now, picture.camera, picture.stamp, picture.encoded)

    def _allowed_until(self) -> int | None:
        return self._time() + AHEAD if self._now else None

    def _tell_progress(self) -> None:
        now = self._time()
        elapsed = now - self._start if self._start else 0
        self.done = bool(self._start) and elapsed >= self._duration
        self._writer.flush()
        progress = {"time": now, "start": self._start, "elapsed": elapsed / messages.NS, "done": self.done}
        print(
            PROGRESS + json.dumps({**progress, **self._counts, **self._status, "episodes": self._episodes}), flush=True
        )


def main(arguments: list[str] | None = None) -> int:
    """Record until the duration is over or a signal comes; return the exit code.

    Parameters of the node: ``profile`` (name or file), ``robot`` (name in it), ``folder``, ``duration`` (s),
    ``film_rate`` (pictures a second), ``policy`` and ``simulation`` (names of their nodes), ``paced``.
    """
    from xvla_ros.robots import load_profile

    stop = StopRequest()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    values = given_parameters("xvla_watch_parameters")
    profile = load_profile(values["profile"])[values["robot"]]
    duration, film_rate = float(values.get("duration", 20.0)), float(values.get("film_rate", 15.0))
    names = values.get("policy", "/xvla"), values.get("simulation", "/sim")
    paced = bool(values.get("paced", False))
    node = WatchNode(profile, Path(values["folder"]), duration, film_rate, *names, paced=paced)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not (stop.made or node.done):
        executor.spin_once(timeout_sec=0.5)
    node.close()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
