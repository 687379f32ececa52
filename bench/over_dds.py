# SPDX-License-Identifier: Apache-2.0
"""A policy of two paths in the live node, over real topics: the run that ``closed_loop`` does without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from closed_loop import Motion, Taken
from driven import DrivenRobot, driven_robot
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from two_paths import Task, TwoPathPolicy

from xvla_ros.control.motion import on_lines
from xvla_ros.nodes import messages, qos
from xvla_ros.robots import Profile
from xvla_ros.types import ActionChunk, Observation

Floats = NDArray[np.float64]

RATE_HZ = 200.0  # of the motion that is returned; joint states come at 50


class NotedPolicy(TwoPathPolicy):
    """Keeps what it would have answered freely to every observation, and when its answer was ready in ROS time."""

    now: Callable[[], int] = staticmethod(lambda: 0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answers: dict[int, tuple[ActionChunk, int]] = {}

    def predict(self, observations: Sequence[Observation], **options: Any) -> list[ActionChunk]:
        free = self.plan(observations[0])
        chunks = super().predict(observations, **options)
        self.answers[chunks[0].stamp] = free, self.now()
        return chunks


class Ears:
    """Joint states, and what the node was commanding at their stamps."""

    def __init__(self, robot: DrivenRobot, profile: Profile, policy: NotedPolicy) -> None:
        self._profile, self._policy, self._robot = profile, policy, robot
        self._latest: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {}
        self._joints: dict[str, dict[str, str]] = {}
        for joint in profile.joints.policy_order:
            described = profile.joints.by_name[joint]
            self._joints.setdefault(described.topic, {})[described.name] = joint
        self.rows: list[tuple[float, Floats, Floats, Floats, Floats]] = []
        self.chunks: list[Taken] = []
        for topic in self._joints:
            robot.node.create_subscription(JointState, topic, partial(self._hear, topic), qos.EVENTS)

    def _hear(self, topic: str, message: JointState) -> None:
        stamp = messages.stamp_ns(message.header.stamp)
        values = zip(message.name, message.position, message.velocity, strict=True)
        named = {
            self._joints[topic][name]: (position, velocity)
            for name, position, velocity in values
            if name in self._joints[topic]
        }
        self._latest[topic] = stamp, named
        stamps = {at for at, _ in self._latest.values()}
        pilot = self._robot.pilot
        if pilot is None or len(stamps) > 1 or len(self._latest) < len(self._joints):
            return
        window = pilot.controller.last_window
        if window is None:
            return
        found = {joint: both for _, part in self._latest.values() for joint, both in part.items()}
        measured = np.array([found[joint] for joint in self._profile.joints.policy_order])
        wanted = window.state_at(stamp)
        self.rows.append((stamp / 1e9, wanted.position, wanted.velocity, measured[:, 0], measured[:, 1]))
        self._note_chunk(pilot.chunk)

    def _note_chunk(self, chunk: ActionChunk | None) -> None:
        if chunk is None or (self.chunks and self.chunks[-1].chunk is chunk):
            return
        free, landed = self._policy.answers[chunk.stamp]
        lead = self._profile.timing.lead
        self.chunks.append(Taken(chunk, free, landed / 1e9, landed / 1e9 + lead, bool(self.chunks)))


def run(profile: Profile, task: Task, policy: NotedPolicy, done: Callable[[Floats], bool]) -> Motion:
    """Let the simulated robot do the task, driven by the node, until ``done`` says so of the measured joints [J]."""
    with driven_robot(profile, policy, seed=0) as robot:
        ears, policy.now = Ears(robot, profile, policy), robot.node._clock_of_robots.ros_ns
        robot.drive(lambda: bool(ears.rows) and done(ears.rows[-1][3]), "the end of the task")
        status = robot.status
    times, *signals = (np.array(column) for column in zip(*ears.rows, strict=True))
    even = np.arange(times[0], times[-1], 1.0 / RATE_HZ)
    resampled = [on_lines(even, times, signal) for signal in signals]
    return Motion(even, *resampled, tuple(ears.chunks), status, robot.refused, True)
