# SPDX-License-Identifier: Apache-2.0
"""The node ``xvla_watch``: a recorder that measures a run, and ends by itself.

It records what ``xvla record`` does, and of a simulation the view from beside the table, from the first command on for
``duration`` seconds of ROS time, and says four times a second how far it is (``progress.read_progress``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from xvla_ros.nodes.messages import message_class, stamp_ns
from xvla_ros.nodes.node_clock import TimeLimit
from xvla_ros.nodes.parameters import given_parameters
from xvla_ros.nodes.process import StopRequest, tell
from xvla_ros.nodes.record_node import QUALITY, RecordNode, RecordOptions
from xvla_ros.recordings.marks import CHUNK, DIAGNOSTICS, OUTCOME, STATUS, RecordedTopic, beside_topic
from xvla_ros.types import NS

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

PROGRESS_PERIOD, LIMIT_PERIOD = 0.25, 0.05  # s on the steady clock
AHEAD = NS // 2  # ns of simulated time that the queues of all topics hold


class WatchNode(RecordNode):
    """Records one robot of one policy node.

    Args:
        profile: the robot.
        options: of the recording.
        duration: s of ROS time to go on after the first command.
        paced: whether the simulation waits for what is written down.
    """

    def __init__(self, profile: Profile, options: RecordOptions, duration: float, *, paced: bool = False) -> None:
        super().__init__(profile, options, self._log)
        beside = beside_topic(profile, options.simulation)
        self._subscribe(beside, QUALITY[beside.kind])
        self._duration, self._start = round(duration * NS), 0
        self._command_topics = {profile.commands.by_name[group].topic for group in profile.commands.groups}
        self._chunks, self._trajectories, self._ended = 0, 0, False
        self._status = {"state": "", "reason": "", "detail": ""}
        self._judged: dict[int, dict[str, Any]] = {}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._limit = TimeLimit(self, self._allowed_until) if paced else None
        if self._limit is not None:
            self.create_timer(LIMIT_PERIOD, self._limit.say, clock=steady)
        self.create_timer(PROGRESS_PERIOD, self._tell_progress, clock=steady)

    def close(self) -> None:
        """Hold simulated time no longer, and finish the file."""
        if self._limit is not None:
            self._limit.close()
        super().close()

    def _on_message(self, topic: RecordedTopic, now: int, data: bytes) -> None:
        # the last diagnostics come a second late, and have the figures of the whole run
        if self._ended and topic.type != DIAGNOSTICS:
            return
        self._ended = bool(self._start) and now > self._start + self._duration
        super()._on_message(topic, now, data)
        if topic.name in self._command_topics:
            self._start = self._start or now
            self._trajectories += 1
        elif topic.type == CHUNK:
            self._chunks += 1
        elif topic.type == STATUS:
            said = deserialize_message(data, message_class(STATUS))
            self._status = {name: getattr(said, name) for name in self._status}
        elif topic.type == OUTCOME:
            self._judge(deserialize_message(data, message_class(OUTCOME)))

    def _judge(self, outcome: Any) -> None:
        if outcome.over and self._start and stamp_ns(outcome.header.stamp) >= self._start:
            names = ("task", "seed", "instruction", "success", "wrong", "elapsed")
            self._judged.setdefault(outcome.episode, {name: getattr(outcome, name) for name in names})

    def _allowed_until(self) -> int | None:
        now = self._ros_time.now()
        return now + AHEAD if now else None

    def _tell_progress(self) -> None:
        now = self._ros_time.now()
        elapsed = now - self._start if self._start else 0
        self.done = self.done or (bool(self._start) and elapsed >= self._duration)
        tell(
            {
                "time": now,
                "start": self._start,
                "elapsed": elapsed / NS,
                "done": self.done,
                "chunks": self._chunks,
                "trajectories": self._trajectories,
                **self._status,
                "episodes": list(self._judged.values()),
            }
        )

    def _log(self, text: str) -> None:
        self.get_logger().info(text)


def main(arguments: list[str] | None = None) -> int:
    """Record until the duration is over or a signal comes; return the exit code.

    Parameters of the node: ``profile`` (name or file), ``robot`` (name in it), ``file`` (of the bag), ``duration`` (s),
    ``policy`` and ``simulation`` (names of their nodes), ``use_sim_time``, ``paced``.
    """
    from xvla_ros.robots import load_profile

    stop = StopRequest()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    values = given_parameters("xvla_watch_parameters")
    profile = load_profile(values["profile"])[values["robot"]]
    file = Path(values["file"])
    options = RecordOptions(
        file.parent,
        policy=values.get("policy", "/xvla"),
        simulation=values.get("simulation", "/sim"),
        file=file,
        sim_time=bool(values.get("use_sim_time", True)),
        compression="zstd",
        checked=False,
    )
    duration, paced = float(values.get("duration", 20.0)), bool(values.get("paced", False))
    node = WatchNode(profile, options, duration, paced=paced)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not (stop.made or node.done):
        executor.spin_once(timeout_sec=0.5)
    node.close()
    rclpy.try_shutdown()
    return 1 if node.failed else 0


if __name__ == "__main__":
    sys.exit(main())
