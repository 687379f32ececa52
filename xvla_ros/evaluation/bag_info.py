# SPDX-License-Identifier: Apache-2.0
"""``xvla data info`` of a bag: what it holds, how regularly it came, and whether it suits a robot."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.errors import BagError, KinematicsError
from xvla_ros.observation.faults import FaultTally
from xvla_ros.observation.images import IMAGE_TYPES
from xvla_ros.recordings.bag_files import BagMessage
from xvla_ros.recordings.bag_recording import profile_of_bag
from xvla_ros.recordings.bag_writer import PROFILE_TOPIC
from xvla_ros.recordings.bags import Bag, TopicSummary
from xvla_ros.recordings.cdr import command_type, peek_stamp, read_joint_state
from xvla_ros.recordings.marks import EPISODE_TOPIC, check_topics
from xvla_ros.recordings.observations import verdict
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.interfaces import JOINT_STATE
from xvla_ros.robots.profile import Profile, load_robot
from xvla_ros.types import NS

SCHEMA_VERSION = 2
STAMPED = (*IMAGE_TYPES.values(), JOINT_STATE)
GAP = 2.5  # usual periods without a message
EXPECTED_MOST = 1e6
ROOM = 1e-3  # rad or m by which encoders and simulators overshoot a stop


@dataclass(frozen=True)
class TopicInfo:
    """How one topic was recorded. Times in s; of stamps where messages have them, else of the log.

    Attributes:
        name, type, count: of it.
        rate: Hz, from the median of the periods; 0 for fewer than two messages.
        gaps: periods of more than 2.5 usual ones; ``longest_gap`` the longest.
        dropped: messages missing in the gaps.
        back: messages with an earlier stamp than the message before them.
        offset: log time minus stamp, the median; None without stamps. ``jitter``: its 95 % range.
        broken: messages that cannot be read; ``problem``: when the first was logged, and what is wrong with it.
    """

    name: str
    type: str
    count: int
    rate: float = 0.0
    gaps: int = 0
    longest_gap: float = 0.0
    dropped: int = 0
    back: int = 0
    offset: float | None = None
    jitter: float | None = None
    broken: int = 0
    problem: str = ""


@dataclass(frozen=True)
class JointInfo:
    """Range of a joint over the bag, rad or m, beside what the profile allows; ``outside``: share of the messages."""

    name: str
    low: float
    high: float
    lower: float
    upper: float
    outside: float


@dataclass(frozen=True)
class Observations:
    """What the node's own reader makes of the bag.

    Attributes:
        asked: pictures of slot 0 at which an observation was asked for; ``built``: those at which there was one.
        decoded: how many pictures were decoded, as a sample.
        faults: {reason, detail, count} of the others, the commonest first.
        unknown: why the reader could not be asked; empty where it could.
    """

    asked: int = 0
    built: int = 0
    decoded: int = 0
    faults: tuple[dict[str, Any], ...] = ()
    unknown: str = ""

    def __str__(self) -> str:
        if self.unknown:
            return f"observations: unknown: {self.unknown}"
        return f"observations: {self.built} of {self.asked}"


@dataclass(frozen=True)
class BagInfo:
    """Everything that is reported of a bag.

    Attributes:
        path, storage, duration, cut, integrity: of the bag, duration in s.
        robot: whose profile it was held against; empty for none.
        topics: all of them; joints: those of the profile.
        missing: what the profile needs and the bag lacks; required things keep the robot from running.
        unused: topics the profile does not know.
        observations: what the robot's node would make of it; None without a robot, or if required topics are missing.
    """

    path: str
    storage: str
    duration: float
    cut: str
    integrity: str
    damaged: bool
    robot: str
    topics: tuple[TopicInfo, ...]
    joints: tuple[JointInfo, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    observations: Observations | None = None

    @property
    def exit_code(self) -> int:
        """1 where it is damaged, lacks what is required, or no observation can be built; 2 where that is not known."""
        found = self.observations
        lacks = bool(self.robot) if found is None else not (found.built or found.unknown)
        if self.damaged or lacks:
            return 1
        return 2 if found is not None and found.unknown else 0

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def inspect(bag: Path | Bag, profile: Profile | None) -> BagInfo:
    """Read a bag, once for all messages and once for a sample of the pictures, and return what it holds.

    Raises:
        BagError: there is none, it is damaged, or nothing in it can be read.
    """
    bag, tracks = Bag.of(bag), dict[str, _Track]()
    ranges = _Ranges(profile) if profile is not None else None

    def take(message: BagMessage) -> None:
        stamp = peek_stamp(message.data) if message.type in STAMPED else None
        if ranges is not None and message.type == JOINT_STATE:
            ranges.add(message.topic, message.data)
        tracks.setdefault(message.topic, _Track()).add(message.log_time, stamp)

    with bag:
        summary = bag.survey(take)
        topics = tuple(tracks.get(topic.name, _Track()).info(topic) for topic in summary.topics)
        missing, unused = _held_against(profile, topics) if profile is not None else ((), ())
        return BagInfo(
            str(bag.path),
            summary.storage,
            (summary.end - summary.start) / NS,
            summary.cut,
            str(bag.integrity),
            bool(bag.integrity.damage),
            profile.name if profile is not None else "",
            topics,
            tuple(ranges.found()) if ranges is not None else (),
            missing,
            unused,
            _observations(bag, profile) if profile is not None else None,
        )


def _observations(bag: Bag, profile: Profile) -> Observations | None:
    try:
        check_topics(bag.summary(), profile)
    except BagError:
        return None  # what is missing is told topic by topic
    try:
        found, decoded = verdict(bag, profile)
    except KinematicsError as error:
        return Observations(unknown=str(error))
    return Observations(found.tried, found.built, decoded, tuple(found.faults.records()))


def text_of(info: BagInfo) -> str:
    """Return the report in lines for people."""
    lines = [f"{info.path}: {info.storage}, {info.duration:.1f} s; {info.integrity}"]
    if info.cut:
        lines.append(f"truncated: {info.cut}")
    head = ("topic", "type", "messages", "Hz", "gaps", "longest", "dropped", "log − stamp", "notes")
    rows = [head, *(_topic_row(topic) for topic in info.topics)]
    lines += ["", *aligned(rows)]
    if info.joints:
        joints = [
            (
                each.name,
                f"{each.low:.3f}",
                f"{each.high:.3f}",
                f"{each.lower:.3f} … {each.upper:.3f}",
                f"{each.outside:.1%}",
            )
            for each in info.joints
        ]
        lines += ["", *aligned([("joint", "lowest", "highest", "may go", "outside"), *joints])]
    if info.robot:
        lines += ["", *_for_robot(info)]
        if info.unused:
            lines.append(f"not used by this robot: {', '.join(info.unused)}")
    return "\n".join(lines)


def _for_robot(info: BagInfo) -> list[str]:
    found = info.observations
    lines = [f"for {info.robot}: {found}"] if found is not None else []
    lines += [f"  {line}" for line in FaultTally(found.faults).lines()] if found is not None else []
    if info.missing:
        lines.append(f"for {info.robot}: lacks:")
    elif found is not None and found.built:
        lines.append(f"for {info.robot}: nothing is missing")
    return [*lines, *(f"  {each}" for each in info.missing)]


@dataclass
class _Track:
    times: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[float] = field(default_factory=lambda: array("d"))

    def add(self, log_time: int, stamp: int | None) -> None:
        self.times.append(log_time if stamp is None else stamp)
        if stamp is not None:
            self.offsets.append((log_time - stamp) / NS)

    def info(self, topic: TopicSummary) -> TopicInfo:
        steps = np.diff(np.frombuffer(self.times, dtype=np.int64)) / NS if self.times else np.zeros(0)
        ahead = steps[steps > 0]
        usual = float(np.median(ahead)) if ahead.size else 0.0
        long = ahead[ahead > GAP * usual] if usual else ahead[:0]
        offset = jitter = None
        if self.offsets:
            low, middle, high = np.percentile(np.frombuffer(self.offsets), (2.5, 50, 97.5))
            offset, jitter = float(middle), float(high - low)
        # a topic without a rhythm, such as marks, has no gaps
        regular = ahead.size >= 10 and topic.type in STAMPED
        return TopicInfo(
            topic.name,
            topic.type,
            topic.count,
            1 / usual if usual else 0.0,
            len(long) if regular else 0,
            float(ahead.max()) if ahead.size else 0.0,
            int(np.rint(long / usual - 1).clip(0, EXPECTED_MOST).sum()) if regular else 0,
            int((steps < 0).sum()),
            offset,
            jitter,
            topic.broken,
            f"logged at {topic.problem_at} ns: {topic.problem}" if topic.broken else "",
        )


class _Ranges:
    """Lowest and highest position of every joint."""

    def __init__(self, profile: Profile) -> None:
        self._of_topic: dict[str, list[tuple[str, str]]] = {}
        for name, joint in zip(profile.joints.policy_order, profile.joints.ordered, strict=True):
            self._of_topic.setdefault(joint.topic, []).append((name, joint.name))
        self._joints = profile.joints.by_name
        self._seen: dict[str, list[float]] = {}  # lowest, highest, messages, of them outside

    def add(self, topic: str, data: bytes) -> None:
        wanted = self._of_topic.get(topic)
        if not wanted:
            return
        _, names, positions = read_joint_state(data)
        found = dict(zip(names, positions.tolist(), strict=False))
        for name, ros_name in wanted:
            if ros_name in found and np.isfinite(value := found[ros_name]):
                seen = self._seen.setdefault(name, [value, value, 0, 0])
                seen[0], seen[1], seen[2] = min(seen[0], value), max(seen[1], value), seen[2] + 1
                seen[3] += not self._joints[name].lower - ROOM <= value <= self._joints[name].upper + ROOM

    def found(self) -> Iterator[JointInfo]:
        for name, (low, high, count, outside) in self._seen.items():
            yield JointInfo(name, low, high, self._joints[name].lower, self._joints[name].upper, outside / count)


def _held_against(profile: Profile, topics: tuple[TopicInfo, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = {topic.name: topic.type for topic in topics if topic.count}
    held = {topic.name: topic.type if topic.count else "no message on it" for topic in topics}
    known = {PROFILE_TOPIC, EPISODE_TOPIC}
    missing = []
    cameras = [(slot, profile.cameras.by_name[slot]) for slot in profile.cameras.slots]
    wanted = [
        (f"camera {slot}" + ("" if camera.required else " (optional)"), camera.topic, IMAGE_TYPES[camera.transport])
        for slot, camera in cameras
    ]
    wanted += [
        (f"joint {name}", joint.topic, JOINT_STATE)
        for name, joint in zip(profile.joints.policy_order, profile.joints.ordered, strict=True)
    ]
    for what, topic, kind in wanted:
        known.add(topic)
        if found.get(topic) != kind:
            missing.append(f"{what}: {topic} ({kind}); the bag has {held.get(topic, 'no such topic')}")
    for group in profile.commands.groups:
        topic = profile.commands.by_name[group].topic
        known.add(topic)
        kind = command_type(profile, group)
        if not kind:
            continue  # goals of an action are on no topic
        if found.get(topic) != kind:
            missing.append(
                f"commands of {group}: {topic} ({kind}); the bag has {held.get(topic, 'no such topic')}. "
                "Without them, the measured joints are used as actions"
            )
    return tuple(dict.fromkeys(missing)), tuple(sorted(set(found) - known))


def profile_for(bag: Bag, robot: str = "") -> Profile | None:
    """Return the profile ``robot``, a name or a file; else the one in the bag, None where it has none."""
    if robot:
        return load_robot(robot)
    try:
        return profile_of_bag(bag)
    except SamplesError:
        return None


def _topic_row(topic: TopicInfo) -> tuple[str, ...]:
    notes = [f"{topic.back} have time stamps that go back"] * bool(topic.back)
    notes += [f"{topic.broken} broken, the first {topic.problem}"] * bool(topic.broken)
    offset = "–" if topic.offset is None else f"{topic.offset * 1e3:.1f} ± {(topic.jitter or 0) * 500:.1f} ms"
    if topic.offset is not None and abs(topic.offset) > 60:
        offset, notes = "another clock", [*notes, "the log times and the time stamps use different clocks"]
    return (
        topic.name,
        topic.type.replace("/msg/", "/"),
        str(topic.count),
        f"{topic.rate:.1f}",
        str(topic.gaps),
        f"{topic.longest_gap:.2f} s",
        str(topic.dropped),
        offset,
        ", ".join(notes),
    )


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows of a table as lines, the columns under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
