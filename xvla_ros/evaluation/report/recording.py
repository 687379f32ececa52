# SPDX-License-Identifier: Apache-2.0
"""A run read from its bag, as arrays: what was measured, commanded, predicted, reported and judged, on one time axis.

The bag is of ``xvla record``, of a demo, or of another recorder. What it does not hold stays empty: chunks, status and
diagnostics where no policy ran, outcomes where nobody judged. No rclpy here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import BagError, MessageError
from xvla_ros.recordings.bag_files import BagMessage
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import STRING, JointCommand, peek_stamp, read, read_command, read_joint_state, read_string
from xvla_ros.recordings.marks import (
    CHUNK,
    DIAGNOSTICS,
    EPISODE_TOPIC,
    NEVER_ENDED,
    OUTCOME,
    STATUS,
    beside_topic,
    marked_episodes,
    read_mark,
)
from xvla_ros.recordings.observations import BagClock
from xvla_ros.robots.interfaces import JOINT_STATE
from xvla_ros.types import NS, ActionChunk

if TYPE_CHECKING:
    from xvla_ros.robots.actions import Decoder, Trajectory
    from xvla_ros.robots.profile import Profile

TIME_IS_UP, SOMETHING_ELSE, NOT_JUDGED = "time limit", "did something else", "not judged"


@dataclass(frozen=True)
class Series:
    """A joint over time: ``time`` float64 [N] in s since the first command, ``position`` float64 [N] in rad or m."""

    time: NDArray[np.float64]
    position: NDArray[np.float64]

    def between(self, begin: float, end: float) -> Series:
        """Return the part after ``begin``, up to and with ``end``."""
        first, last = np.searchsorted(self.time, (begin, end), side="right")
        return Series(self.time[first:last], self.position[first:last])

    def stretches(self, resets: Sequence[float]) -> list[Series]:
        """Return the parts between resets: at a reset a joint is set to where no motion has brought it."""
        ends = (-np.inf, *resets, np.inf)
        return [self.between(begin, end) for begin, end in pairwise(ends)]


@dataclass(frozen=True)
class ChunkRecord:
    """One predicted chunk.

    Attributes:
        received: s since the first command (the very first chunks come before it: negative).
        time: float64 [T], when each point is due, s since the first command.
        position: float64 [T, J] in rad or m, joints in policy order: tool poses as inverse kinematics has them, from
            where the joints were commanded to be; None where the chunk cannot be decoded.
        inference_ms: wall time of the forward pass.
    """

    received: float
    time: NDArray[np.float64]
    position: NDArray[np.float64] | None
    inference_ms: float


@dataclass(frozen=True)
class StatusRecord:
    """A report of the policy: ``time`` in s since the first command, the rest as in PolicyStatus."""

    time: float
    state: str
    reason: str
    detail: str
    instruction: str
    chunks: int
    trajectories: int
    dropped_chunks: int
    holds: int
    limited_points: int


@dataclass(frozen=True)
class RunEpisode:
    """One episode; times in s since the first command of the run.

    Attributes:
        task, seed, instruction: which, of what layout, and what to do; task and seed are empty and None where it was
            marked, not led.
        begun: of the reset, or of the mark.
        ended: when it was decided or its time was up; None where the run ended first.
        success, wrong: whether it did what it was told, or something else; success is None where nobody judged.
        duration: s from the episode's first command to its end.
    """

    task: str
    seed: int | None
    instruction: str
    begun: float
    ended: float | None
    success: bool | None
    wrong: bool
    duration: float

    @property
    def outcome(self) -> str:
        """What it came to, in words; empty before its end."""
        if self.ended is None:
            return ""
        return NOT_JUDGED if self.success is None else in_words(self.task, success=self.success, wrong=self.wrong)

    @property
    def sign(self) -> str:
        """What it came to, in one character."""
        return "–" if self.success is None else "✓" if self.success else "✗"

    def to_mapping(self) -> dict[str, Any]:
        """Return its entry in ``report.json``."""
        return {
            "seed": self.seed,
            "instruction": self.instruction,
            "success": self.success,
            "wrong": self.wrong,
            "duration": round(self.duration, 3),
        }


@dataclass(frozen=True)
class RunRecording:
    """One run of one robot, from its first command to its end.

    Attributes:
        start: ROS time of the first command in ns, or of the first message where none came; 0 of an empty bag.
        duration: s of ROS time from there to the last message.
        trajectories: commands seen on each command topic.
        diagnostics: the policy's newest diagnostic values; empty where no policy ran.
        before: the policy's values at the beginning of a part of a run, whose counters count on; empty for a whole run.
        simulation: a simulation's newest ones.
        stamps: of the recorded pictures of each camera, ns of ROS time.
        episodes: of a task, where one was led, else those that were marked.
        resets: when a simulation set arms and props back to a start, s since the first command.
        beside: the topic of the view from beside a simulation's table; empty where it was not recorded.
    """

    start: int
    duration: float
    measured: dict[str, Series]
    commanded: dict[str, Series]
    chunks: tuple[ChunkRecord, ...]
    statuses: tuple[StatusRecord, ...]
    trajectories: dict[str, int]
    diagnostics: dict[str, str]
    simulation: dict[str, str]
    stamps: dict[str, Sequence[int]]
    episodes: tuple[RunEpisode, ...] = ()
    resets: tuple[float, ...] = ()
    beside: str = ""
    before: dict[str, str] = field(default_factory=dict)

    def counted(self, what: str) -> int:
        """Return a counter of ``PolicyStatus`` over the whole run; it starts again at each activation of the policy."""
        values = [0, *(getattr(status, what) for status in self.statuses)]
        return sum(after - before if after >= before else after for before, after in pairwise(values))


def read_recording(bag: Path, profile: Profile, duration: float | None = None) -> RunRecording:
    """Read a run of one robot from a bag.

    Args:
        duration: s after the first command; what came later is left out.

    Raises:
        BagError: there is no bag, or it is damaged.
    """
    reader = _RunReader(profile)
    for message in Bag(bag).messages():
        reader.take(message)
    return reader.recording(duration)


def can_be_shown(bag: Path, profile: Profile) -> bool:
    """Say whether a bag holds joints and pictures of a robot."""
    try:
        held = {topic.name for topic in Bag(bag).summary().topics if topic.count}
    except BagError:
        return False
    return bool(held & set(profile.joints.topics)) and bool(held & set(profile.cameras.by_topic))


class _RunReader:
    """Takes the messages of a bag in their order."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._clock, self._offset = BagClock(), 0  # of ROS time from the log's, where that has another clock
        self._first, self._last, self._commanded_at = 0, 0, 0
        by_name = profile.joints.by_name
        self._joint_names = {(by_name[j].topic, by_name[j].name): j for j in profile.joints.policy_order}
        self._measured = {joint: _Samples() for joint in profile.joints.policy_order}
        self._commanded = {joint: _Samples() for joint in profile.joints.policy_order}
        self._groups: dict[str, list[str]] = {}
        for group in profile.commands.groups:
            self._groups.setdefault(profile.commands.by_name[group].topic, []).append(group)
        self._commands = {topic: array("q") for topic in self._groups}
        self._stamps = {topic: array("q") for topic in profile.cameras.by_topic}
        self._heard: dict[str, list[tuple[int, Any]]] = {kind: [] for kind in (CHUNK, STATUS, DIAGNOSTICS, OUTCOME)}
        self._marks: list[tuple[int, dict[str, Any]]] = []
        self._beside = ""
        self._takers: dict[str, Callable[[BagMessage], None]] = dict.fromkeys(self._stamps, self._on_picture)
        self._takers |= dict.fromkeys(profile.joints.topics, self._on_joints)
        self._takers |= dict.fromkeys(self._groups, self._on_command)
        self._takers[EPISODE_TOPIC] = self._on_mark

    def take(self, message: BagMessage) -> None:
        taker = self._takers.get(message.topic, self._on_other)
        with suppress(MessageError):  # one message is cut; the others are whole
            taker(message)

    def recording(self, duration: float | None) -> RunRecording:
        profile, start = self._profile, self._commanded_at or self._first
        length = max(0.0, (self._last - start) / NS)
        length = length if duration is None else min(length, duration)
        end = start + length * NS if start else np.inf
        statuses = self._until(STATUS, end)
        episodes = _judged(self._until(OUTCOME, np.inf), start, end)
        resets = tuple(episode.begun for episode in episodes)
        measured, commanded = (
            {joint: samples.series(start, end) for joint, samples in of.items()}
            for of in (self._measured, self._commanded)
        )
        return RunRecording(
            start=start,
            duration=length,
            measured=measured,
            commanded=commanded,
            chunks=_chunks(self._until(CHUNK, end), profile, start, measured, commanded, episodes),
            statuses=tuple(_status(time, said, start) for time, said in statuses),
            trajectories={
                group: bisect_right(self._commands[topic], end)
                for topic, groups in self._groups.items()
                for group in groups
            },
            diagnostics=self._diagnostics("trained", end),
            simulation=self._diagnostics("real_time_factor", np.inf),
            stamps={slot: self._stamps[profile.cameras.by_name[slot].topic] for slot in profile.cameras.slots},
            episodes=episodes or _marked(self._marks, start, end),
            resets=resets,
            beside=self._beside,
            before={} if duration is None else self._diagnostics("trained", start, or_later=False),
        )

    def _until(self, kind: str, end: float) -> list[tuple[int, Any]]:
        return [(time, said) for time, said in self._heard[kind] if time <= end]

    def _diagnostics(self, key: str, end: float, *, or_later: bool = True) -> dict[str, str]:
        """Return this robot's newest values that hold ``key``: of those up to the end, else of all or none."""
        found = [(time, values) for time, values in self._heard[DIAGNOSTICS] if key in values]
        within = [values for time, values in found if time <= end]
        return within[-1] if within else found[-1][1] if found and or_later else {}

    def _time(self, message: BagMessage, stamp: int | None = None) -> int:
        """Return the ROS time of a message in ns."""
        if stamp is not None:
            self._offset = self._clock.now(message.topic, message.log_time, stamp) - message.log_time
        now = message.log_time + self._offset
        if message.type != DIAGNOSTICS:  # those of a run come a second late
            self._first, self._last = self._first or now, max(self._last, now)
        return now

    def _on_picture(self, message: BagMessage) -> None:
        stamp = peek_stamp(message.data)
        self._time(message, stamp)
        self._stamps[message.topic].append(stamp)

    def _on_joints(self, message: BagMessage) -> None:
        if message.type != JOINT_STATE:
            return
        stamp, names, positions = read_joint_state(message.data)
        self._time(message, stamp)
        for name, position in zip(names, positions.tolist(), strict=False):
            joint = self._joint_names.get((message.topic, name))
            if joint is not None:
                self._measured[joint].add(stamp, position)

    def _on_command(self, message: BagMessage) -> None:
        """Keep the first point of every command, at the time it was due: together they are the commanded path."""
        now = self._time(message)
        self._commanded_at = self._commanded_at or now
        self._commands[message.topic].append(now)
        for group in self._groups[message.topic]:
            command = read_command(self._profile, group, message.data)
            if isinstance(command, JointCommand) and command.times.size:
                due = (command.start or now) + int(command.times[0])
                joints = self._profile.commands.by_name[group].joints
                for joint, position in zip(joints, command.positions[0].tolist(), strict=True):
                    self._commanded[joint].add(due, position, received=now)

    def _on_mark(self, message: BagMessage) -> None:
        with suppress(ValueError):
            mark = read_mark(read_string(message.data))
            if mark.get("robot", self._profile.name) == self._profile.name:
                self._marks.append((self._time(message), mark))

    def _on_other(self, message: BagMessage) -> None:
        """Keep what policy and simulation say, on any topic; in older bags outcomes are JSON in a String."""
        with limits.edge(MessageError, MessageError):
            self._keep(message)

    def _keep(self, message: BagMessage) -> None:
        if message.type == STRING and message.topic.endswith(f"/{self._profile.name}/outcome"):
            said = SimpleNamespace(**limits.json_of(read_string(message.data)))
            self._heard[OUTCOME].append((self._time(message), said))
        elif message.topic.endswith(beside_topic(self._profile, "").name):
            self._beside = message.topic
        elif message.type in self._heard:
            said = read(message.data, message.type)
            if message.type == DIAGNOSTICS:
                for status in said.status:
                    if status.name.endswith(f": {self._profile.name}"):
                        values = {item.key: item.value for item in status.values}
                        self._heard[DIAGNOSTICS].append((self._time(message), values))
            elif said.robot in ("", self._profile.name):
                self._heard[message.type].append((self._time(message), said))


class _Samples:
    """Positions of one joint as they come, held as plain numbers."""

    def __init__(self) -> None:
        self._times, self._received, self._positions = array("q"), array("q"), array("d")

    def add(self, time: int, position: float, received: int | None = None) -> None:
        if np.isfinite(position):
            self._times.append(time)
            self._received.append(time if received is None else received)
            self._positions.append(position)

    def series(self, start: int, end: float) -> Series:
        times, positions = np.array(self._times, dtype=np.int64), np.array(self._positions, dtype=np.float64)
        kept = np.array(self._received, dtype=np.int64) <= end
        order = np.argsort(times[kept], kind="stable")
        return Series((times[kept][order] - start) / NS, positions[kept][order])


def _nanoseconds(time: Any) -> int:
    return time if isinstance(time, int) else int(time.sec) * NS + int(time.nanosec)


def _status(time: int, said: Any, start: int) -> StatusRecord:
    names = [name for name in StatusRecord.__dataclass_fields__ if name != "time"]
    return StatusRecord(time=(time - start) / NS, **{name: getattr(said, name) for name in names})


def _judged(outcomes: Sequence[tuple[int, Any]], start: int, end: float) -> tuple[RunEpisode, ...]:
    """Return the episodes that outcomes report, in order; nothing counts after ``end``, ns of ROS time."""
    newest: dict[int, tuple[Any, int, int]] = {}
    for _, said in outcomes:
        stamp = _nanoseconds(said.stamp if hasattr(said, "stamp") else said.header.stamp)
        begun = _nanoseconds(said.begun)
        # an end that came too late leaves the episode as it was
        if begun <= end and (stamp <= end or said.episode not in newest):
            newest[said.episode] = said, begun, stamp
    episodes = []
    for number in sorted(newest):
        said, begun, stamp = newest[number]
        over = bool(said.over) and stamp <= end
        episodes.append(
            RunEpisode(
                said.task,
                int(said.seed),
                said.instruction,
                (begun - start) / NS,
                (stamp - start) / NS if over else None,
                over and bool(said.success),
                over and bool(said.wrong),
                float(said.elapsed),
            )
        )
    return tuple(episodes)


def _marked(marks: Sequence[tuple[int, dict[str, Any]]], start: int, end: float) -> tuple[RunEpisode, ...]:
    """Return the episodes of a recorder's marks, as in training."""
    return tuple(
        RunEpisode(
            str(mark.get("task") or ""),
            mark.get("seed"),
            str(mark.get("instruction") or ""),
            (begun - start) / NS,
            None if ended == NEVER_ENDED else (ended - start) / NS,
            mark.get("success"),
            False,
            0.0 if ended == NEVER_ENDED else (ended - begun) / NS,
        )
        for begun, ended, mark in marked_episodes(marks, {})
        if begun <= end
    )


def at(episodes: Sequence[RunEpisode], time: float) -> RunEpisode | None:
    """Return the episode at ``time``: the last that had begun."""
    return next((episode for episode in reversed(episodes) if episode.begun <= time), None)


@cache
def in_words(task: str, *, success: bool, wrong: bool) -> str:
    """Return an episode's result in words; a task outside the catalogue just succeeds or fails."""
    from xvla_ros.simulation.tasks.catalogue import TASKS

    if task not in TASKS:
        return "succeeded" if success else "failed"
    return TASKS[task].done if success else SOMETHING_ELSE if wrong else TIME_IS_UP


def _chunks(
    messages: Sequence[tuple[int, Any]],
    profile: Profile,
    start: int,
    measured: Mapping[str, Series],
    commanded: Mapping[str, Series],
    episodes: Sequence[RunEpisode],
) -> tuple[ChunkRecord, ...]:
    decoder = _decoder(profile) if messages else None
    made = []
    for time, said in messages:
        stamp, times = _nanoseconds(said.header.stamp), np.array(said.times, dtype=float)
        asked, path = (stamp - start) / NS, None
        if decoder is not None:
            episode = at(episodes, asked)
            since = -np.inf if episode is None else episode.begun
            path = _path(said, stamp, profile, decoder, _where(asked, since, profile, measured, commanded))
        due, positions = (asked + times, None) if path is None else ((path.times - start) / NS, path.positions)
        made.append(ChunkRecord((time - start) / NS, due, positions, float(said.inference_ms)))
    return tuple(made)


def _decoder(profile: Profile) -> Decoder | None:
    """Return what turns the robot's chunks into joints; None where that is not possible, as without Pinocchio."""
    from xvla_ros.errors import KinematicsError
    from xvla_ros.robots.actions import Decoder

    try:
        return Decoder(profile)
    except KinematicsError:
        return None


def _path(
    said: Any, stamp: int, profile: Profile, decoder: Decoder, begin: NDArray[np.float64] | None
) -> Trajectory | None:
    try:
        chunk = ActionChunk(
            profile.name,
            profile.policy.domain_id,
            said.action_mode,
            said.instruction,
            stamp,
            np.array(said.times, dtype=float),
            np.array(said.actions, np.float32).reshape(-1, said.width),
            float(said.inference_ms),
            0,
        )
        return decoder.decode(chunk, begin)
    except ValueError:  # of another width or mode than the profile, or not finite: the node held, and said so
        return None


def _where(
    time: float, since: float, profile: Profile, measured: Mapping[str, Series], commanded: Mapping[str, Series]
) -> NDArray[np.float64] | None:
    """Return where the joints [J] were commanded to be at ``time``; before any command since ``since``, measured."""
    found = []
    for joint in profile.joints.policy_order:
        series = commanded[joint].between(since, np.inf)
        if not series.time.size or time < series.time[0]:
            series = measured[joint].between(since, np.inf)
        if not series.time.size:
            return None
        found.append(float(np.interp(time, series.time, series.position)))
    return np.array(found)
