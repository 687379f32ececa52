"""A watched run as arrays: what was measured, commanded, predicted and reported, on one time axis.

The records come from ``nodes.watch_node`` by way of ``nodes.recording``; no rclpy here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import XvlaError
from xvla_ros.evaluation.report.episodes import NANOSECONDS, Episode, at, read_episodes
from xvla_ros.model.data import ActionChunk
from xvla_ros.nodes.recording import RECORDS, RecordingReader

if TYPE_CHECKING:
    from xvla_ros.robots.actions import Decoder, Trajectory
    from xvla_ros.robots.profile import Profile

# Encoder noise and servo hum stay below this; without it, standing still for an hour would count as travel.
TRAVEL_DEADBAND = 1e-3


class RecordingError(XvlaError, RuntimeError):
    """The recording lacks something the report must say."""


@dataclass(frozen=True)
class Series:
    """A joint over time: ``time`` float64 [N] in s since the first command, ``position`` float64 [N] in rad or m."""

    time: NDArray[np.float64]
    position: NDArray[np.float64]

    def between(self, begin: float, end: float) -> Series:
        """What lies after ``begin``, up to ``end``."""
        first, last = np.searchsorted(self.time, (begin, end), side="right")
        return Series(self.time[first:last], self.position[first:last])

    def stretches(self, resets: Sequence[float]) -> list[Series]:
        """The parts between resets, over which a joint was set where no motion had brought it."""
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
class Picture:
    """Where one encoded camera picture lies: ``time`` in s since the first command."""

    camera: str
    time: float
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Recording:
    """One run of one robot, from its first command to its end.

    Attributes:
        start: ROS time of the first command in ns; 0 when none came.
        duration: s of ROS time from the first command to the last record.
        trajectories: commands seen on each command topic.
        diagnostics: the policy's newest diagnostic values.
        episodes: of a task, where one was led.
    """

    start: int
    duration: float
    measured: dict[str, Series]
    commanded: dict[str, Series]
    chunks: tuple[ChunkRecord, ...]
    statuses: tuple[StatusRecord, ...]
    trajectories: dict[str, int]
    diagnostics: dict[str, str]
    pictures: tuple[Picture, ...] = field(repr=False)
    episodes: tuple[Episode, ...] = ()

    @property
    def resets(self) -> tuple[float, ...]:
        """When the simulation set the arms and everything else anew, s since the first command."""
        return tuple(episode.begun for episode in self.episodes)

    def counted(self, what: str) -> int:
        """A counter of ``PolicyStatus`` over the whole run; each activation of the policy begins anew."""
        values = [0, *(getattr(status, what) for status in self.statuses)]
        return sum(after - before if after >= before else after for before, after in pairwise(values))


def read_recording(folder: Path, profile: Profile, duration: float | None = None) -> Recording:
    """Read the recording in ``folder``.

    Where no command came, the first record takes its place.

    Args:
        duration: leave out what came later than this many seconds after the first command.
    """
    with RecordingReader(folder) as reader:
        records = list(reader.new())
    commanded = any(record["kind"] == "command" for record in records)
    start = None if commanded else next((record["time"] for record in records if record["time"]), None)
    return gather(records, profile, duration, start=start)


def can_be_shown(folder: Path) -> bool:
    """Whether the recording in ``folder`` holds joints and pictures."""
    if not (folder / RECORDS).is_file():
        return False
    with RecordingReader(folder) as reader:
        return {record["kind"] for record in reader.new()} >= {"joints", "image"}


def gather(
    records: Iterable[Mapping[str, Any]], profile: Profile, duration: float | None = None, *, start: int | None = None
) -> Recording:
    """Sort records into arrays; see :func:`read_recording`.

    Args:
        start: ROS time in ns that counts as the first command; None takes the first command among the records.
    """
    by_kind: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_kind[record["kind"]].append(record)
    commands = by_kind["command"]
    if start is None:
        start = commands[0]["time"] if commands else 0
    last = max((records[-1]["time"] for records in by_kind.values() if records), default=start)
    length = max(0.0, (last - start) / NANOSECONDS) if start else 0.0
    length = length if duration is None else min(length, duration)
    end = start + length * NANOSECONDS if start else float("inf")

    def until_end(kind: str) -> list[Mapping[str, Any]]:
        return [record for record in by_kind[kind] if record["time"] <= end]

    commands = until_end("command")
    diagnostics = until_end("diagnostics") or by_kind["diagnostics"]
    measured, commanded = _measured(until_end("joints"), profile, start), _commanded(commands, profile, start)
    episodes = read_episodes(by_kind["outcome"], start, end)
    return Recording(
        start=start,
        duration=length,
        measured=measured,
        commanded=commanded,
        chunks=_chunks(until_end("chunk"), profile, start, measured, commanded, episodes),
        statuses=tuple(_status(record, start) for record in until_end("status")),
        trajectories={
            group: sum(record["topic"] == profile.commands.by_name[group].topic for record in commands)
            for group in profile.commands.groups
        },
        diagnostics=dict(diagnostics[-1]["values"]) if diagnostics else {},
        pictures=tuple(
            Picture(record["camera"], (record["stamp"] - start) / NANOSECONDS, record) for record in until_end("image")
        ),
        episodes=episodes,
    )


def travel(series: Series, deadband: float = TRAVEL_DEADBAND) -> float:
    """Length of the way one joint went: the sum of its movements, counted in steps of at least ``deadband``.

    A movement counts once the joint is ``deadband`` away from where the last counted movement ended.
    """
    total = 0.0
    if not series.position.size:
        return total
    anchor = float(series.position[0])
    for position in series.position.tolist():
        step = abs(position - anchor)
        if step >= deadband:
            total += step
            anchor = position
    return total


def joint_travel(recording: Recording, profile: Profile) -> dict[str, float]:
    """Way the joints of each command group went, in rad: the sum over its joints, grippers left out.

    A group that holds nothing but grippers counts those. Only what was measured after the first command counts,
    and no reset.
    """
    ways = {
        joint: sum(travel(_after_start(part)) for part in track.stretches(recording.resets))
        for joint, track in recording.measured.items()
    }
    return travel_by_group(ways, profile)


def travel_by_group(ways: Mapping[str, float], profile: Profile) -> dict[str, float]:
    """Way of each command group, for the way of each joint, by the rule of ``joint_travel``."""
    skipped, sums = grippers(profile), {}
    for group in profile.commands.groups:
        joints = profile.commands.by_name[group].joints
        counted = [joint for joint in joints if joint not in skipped] or list(joints)
        sums[group] = sum(ways[joint] for joint in counted)
    return sums


def grippers(profile: Profile) -> frozenset[str]:
    """Policy names of the joints that are grippers, by the action mode or the tools of the profile."""
    spec = profile.action_spec
    if spec.is_end_effector:
        return frozenset(tool.gripper.joint for tool in profile.tools.values())
    order = profile.joints.policy_order
    return frozenset(order[index] for index in spec.gripper if index < len(order))


def _after_start(series: Series) -> Series:
    later = series.time >= 0.0
    return Series(series.time[later], series.position[later])


def _measured(records: list[Mapping[str, Any]], profile: Profile, start: int) -> dict[str, Series]:
    samples = _Samples(profile)
    for record in records:
        samples.add(record["topic"], (record["stamp"] - start) / NANOSECONDS, record["names"], record["positions"])
    return samples.series()


def _commanded(records: list[Mapping[str, Any]], profile: Profile, start: int) -> dict[str, Series]:
    """The first point of every command, at the time it was due: together they are the path asked for."""
    topics = {}
    for group in profile.commands.groups:
        command = profile.commands.by_name[group]
        for joint in command.joints:
            topics[(command.topic, profile.joints.by_name[joint].name)] = joint
    samples = _Samples(profile, topics)
    for record in records:
        for offset, positions in record["points"][:1]:
            time = (record["time"] - start) / NANOSECONDS + offset
            samples.add(record["topic"], time, record["names"], positions)
    return samples.series()


class _Samples:
    """Collects positions by policy name from messages that name joints as ROS does."""

    def __init__(self, profile: Profile, joints: dict[tuple[str, str], str] | None = None) -> None:
        by_name = profile.joints.by_name
        self._joints = joints or {(by_name[j].topic, by_name[j].name): j for j in profile.joints.policy_order}
        self._values: dict[str, list[tuple[float, float]]] = {name: [] for name in profile.joints.policy_order}

    def add(self, topic: str, time: float, names: list[str], positions: list[float | None]) -> None:
        for name, position in zip(names, positions, strict=False):
            joint = self._joints.get((topic, name))
            if joint is not None and position is not None:
                self._values[joint].append((time, position))

    def series(self) -> dict[str, Series]:
        arrays = {name: np.array(sorted(values), dtype=float).reshape(-1, 2) for name, values in self._values.items()}
        return {name: Series(array[:, 0], array[:, 1]) for name, array in arrays.items()}


def _chunks(
    records: list[Mapping[str, Any]],
    profile: Profile,
    start: int,
    measured: Mapping[str, Series],
    commanded: Mapping[str, Series],
    episodes: Sequence[Episode],
) -> tuple[ChunkRecord, ...]:
    decoder = _decoder(profile) if records else None
    made = []
    for record in records:
        asked = (record["stamp"] - start) / NANOSECONDS
        path = None
        if decoder is not None:
            episode = at(episodes, asked)
            since = -np.inf if episode is None else episode.begun
            path = _path(record, profile, decoder, _where(asked, since, profile, measured, commanded))
        if path is None:
            times, positions = asked + np.array(record["times"], dtype=float), None
        else:
            times, positions = (path.times - start) / NANOSECONDS, path.positions
        received = (record["time"] - start) / NANOSECONDS
        made.append(ChunkRecord(received, times, positions, float(record["inference_ms"])))
    return tuple(made)


def _decoder(profile: Profile) -> Decoder | None:
    """What turns the robot's chunks into joints; None where that cannot be had, as without Pinocchio."""
    from xvla_ros.robots.actions import Decoder
    from xvla_ros.robots.kinematics import KinematicsError

    try:
        return Decoder(profile)
    except KinematicsError:
        return None


def _path(
    record: Mapping[str, Any], profile: Profile, decoder: Decoder, begin: NDArray[np.float64] | None
) -> Trajectory | None:
    actions = np.array(record["actions"], dtype=np.float32).reshape(-1, record["width"])
    chunk = ActionChunk(
        profile.name, profile.policy.domain_id, record["action_mode"], record["instruction"], record["stamp"],
        np.array(record["times"], dtype=float), actions, record["inference_ms"], 0,
    )
    try:
        return decoder.decode(chunk, begin)
    except ValueError:  # of another width or mode than the profile, or not finite: the node held, and said so
        return None


def _where(
    time: float, since: float, profile: Profile, measured: Mapping[str, Series], commanded: Mapping[str, Series]
) -> NDArray[np.float64] | None:
    """Where the joints [J] were sent to be at ``time``; before the first command ``since`` a time, where they were."""
    found = []
    for joint in profile.joints.policy_order:
        series = commanded[joint].between(since, np.inf)
        if not series.time.size or time < series.time[0]:
            series = measured[joint].between(since, np.inf)
        if not series.time.size:
            return None
        found.append(float(np.interp(time, series.time, series.position)))
    return np.array(found)


def _status(record: Mapping[str, Any], start: int) -> StatusRecord:
    fields = {name: record[name] for name in StatusRecord.__dataclass_fields__ if name != "time"}
    return StatusRecord(time=(record["time"] - start) / NANOSECONDS, **fields)
