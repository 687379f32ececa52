# SPDX-License-Identifier: Apache-2.0
"""Which topics a recording has, and the marks of its episodes: made and followed live, and read from a bag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeVar

from xvla_ros.errors import BagError, MessageError
from xvla_ros.limits import json_of
from xvla_ros.observation.images import IMAGE_TYPES
from xvla_ros.recordings.bags import BagSummary
from xvla_ros.recordings.cdr import STRING, command_type
from xvla_ros.robots.interfaces import JOINT_STATE
from xvla_ros.robots.profile import Profile
from xvla_ros.types import BESIDE

EPISODE_TOPIC = "/xvla/episode"
EVENTS = ("start", "end", "discard")
NEVER_ENDED = 1 << 62  # ns; later than any measurement
Open = TypeVar("Open")
Ended = TypeVar("Ended")


def read_mark(text: str) -> dict[str, Any]:
    """Return the mark that a message holds.

    Raises:
        MessageError: it is no mark.
    """
    try:
        mark = json_of(text)
    except ValueError as error:
        raise MessageError(f"{text[:80]!r} is not JSON ({error})") from None
    if not isinstance(mark, dict) or mark.get("event") not in EVENTS:
        raise MessageError(f"{text[:80]!r}; expected an object with event {', '.join(EVENTS)}")
    return mark


Marks = list[tuple[int, dict[str, Any]]]


def with_their_ends(stretches: list[Marks]) -> list[Marks]:
    """Give each stretch that ends within an episode the mark of its end, which lies in the next: it says how it went.

    Args:
        stretches: [(ROS time ns, mark)] of each; changed, and returned.
    """
    for before, after in pairwise(stretches):
        if before and before[-1][1]["event"] == "start" and after and after[0][1]["event"] != "start":
            before.append((NEVER_ENDED, after.pop(0)[1]))
    return stretches


@dataclass
class Episodes(Generic[Open, Ended]):
    """What marks make of a recording, one after the other: what is known of each episode is up to the caller.

    Attributes:
        open: what is known of the episode that has begun, None where none has.
        ended: what is known of those that ended and are kept, in order.
        discarded: how many were dropped.
    """

    open: Open | None = None
    ended: list[Ended] = field(default_factory=list)
    discarded: int = 0
    _can_drop: bool = field(default=False, init=False)  # the last that ended: not after a discard

    @property
    def can_discard(self) -> bool:
        return self.open is not None or self._can_drop

    def mark(self, event: str, begun: Open, ended: Callable[[Open], Ended]) -> bool:
        """Take a mark; return whether an episode ended. A start ends the one that is open.

        A discard drops the one that is open, or else the last one; a second discard in a row drops none.

        Args:
            event: one of ``EVENTS``.
            begun: what is known of an episode that begins here.
            ended: what is known of one that ends here.
        """
        before, self.open = self.open, begun if event == "start" else None
        if event == "discard":
            self.discarded += before is not None or self._can_drop
            if before is None and self._can_drop:
                self.ended.pop()
            self._can_drop = False
        elif before is not None:
            self.ended.append(ended(before))
            self._can_drop = True
            return True
        return False


def marked_episodes(
    marks: Iterable[tuple[int, dict[str, Any]]], skipped: dict[str, int]
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield start, end and mark of the episodes between these marks, in order; one without an end never ends.

    Args:
        marks: [(ROS time ns, mark)].
        skipped: why an episode is left out → how many, counted up here.
    """
    episodes: Episodes[tuple[int, dict[str, Any]], tuple[int, int, dict[str, Any]]] = Episodes()
    for time, mark in marks:
        episodes.mark(mark["event"], (time, mark), partial(_until, time, mark))
    if episodes.discarded:
        skipped["discarded"] = skipped.get("discarded", 0) + episodes.discarded
    yield from episodes.ended
    if episodes.open is not None:
        begun, first = episodes.open
        yield begun, NEVER_ENDED, first


def _until(time: int, mark: Mapping[str, Any], begun: tuple[int, dict[str, Any]]) -> tuple[int, int, dict[str, Any]]:
    start, first = begun
    return start, time, {**first, **_given(mark)}


def _given(mark: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the mark of an end adds to that of the start."""
    if mark["event"] != "end":
        return {}
    return {key: value for key, value in mark.items() if value not in (None, "") and key != "event"}


class EpisodeMarks:
    """Follows the marks of one robot and makes new ones.

    Args:
        robot: its name.
        instruction: of episodes that no mark gives another.
    """

    def __init__(self, robot: str, instruction: str = "") -> None:
        self.robot, self.instruction = robot, instruction
        self.episodes: Episodes[bool, bool | None] = Episodes()  # ended: whether each succeeded, None for unjudged

    def read(self, text: str) -> dict[str, Any]:
        """Return the mark that a message holds, and follow it where it is of this robot.

        Raises:
            MessageError: it is no mark.
        """
        mark = read_mark(text)
        if mark.get("success") not in (True, False, None):
            raise MessageError(f"success is {mark['success']!r}; expected true, false or null")
        if mark.setdefault("robot", self.robot) == self.robot:
            self._follow(mark)
        return mark

    def start(self) -> dict[str, Any]:
        """Return the mark that begins an episode; one that is open ends there, unjudged."""
        return self._made(event="start", instruction=self.instruction)

    def end(self, success: bool | None) -> dict[str, Any] | None:
        """Return the mark that ends the open episode, None where none is open."""
        return self._made(event="end", instruction=self.instruction, success=success) if self.episodes.open else None

    def discard(self) -> dict[str, Any] | None:
        """Return the mark that drops the open episode, else the last one; None where there is neither."""
        return self._made(event="discard") if self.episodes.can_discard else None

    def _made(self, **fields: Any) -> dict[str, Any]:
        mark = {"robot": self.robot, **fields}
        self._follow(mark)
        return mark

    def _follow(self, mark: dict[str, Any]) -> None:
        success = mark.get("success") if mark["event"] == "end" else None
        self.episodes.mark(mark["event"], True, lambda _: success)


DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
CHUNK, STATUS = "xvla_ros/msg/ActionChunk", "xvla_ros/msg/PolicyStatus"
OUTCOME = "xvla_ros/msg/EpisodeOutcome"
SENSOR, COMMAND, LATCHED = "sensor", "command", "latched"


@dataclass(frozen=True)
class RecordedTopic:
    """One topic.

    Attributes:
        name: its name.
        type: ``sensor_msgs/msg/Image``.
        kind: ``sensor``, ``command`` or ``latched``.
        required: without it the recording gives no samples.
    """

    name: str
    type: str
    kind: str
    required: bool = False


def recorded_topics(profile: Profile, policy: str = "/xvla", simulation: str = "/sim") -> tuple[RecordedTopic, ...]:
    """Return the topics to record of a robot.

    They are its cameras, joints and commands; the instruction to the node ``policy``, and what that publishes of the
    robot; the marks of episodes, and their outcome from the node ``simulation``. Goals of actions are on no topic;
    what such a gripper did is what was measured.
    """
    cameras = [profile.cameras.by_name[slot] for slot in profile.cameras.slots]
    topics = [RecordedTopic(each.topic, IMAGE_TYPES[each.transport], SENSOR, each.required) for each in cameras]
    topics += [RecordedTopic(joint.topic, JOINT_STATE, SENSOR, True) for joint in profile.joints.ordered]
    topics += [
        RecordedTopic(profile.commands.by_name[group].topic, kind, COMMAND)
        for group in profile.commands.groups
        if (kind := command_type(profile, group))
    ]
    own = f"{policy}/{profile.name}"
    topics += [
        RecordedTopic(f"{own}/instruction", STRING, LATCHED),
        RecordedTopic(f"{own}/status", STATUS, LATCHED),
        RecordedTopic(f"{own}/action_chunk", CHUNK, COMMAND),
        RecordedTopic("/diagnostics", DIAGNOSTICS, COMMAND),
        RecordedTopic(EPISODE_TOPIC, STRING, COMMAND),
        RecordedTopic(f"{simulation}/{profile.name}/outcome", OUTCOME, LATCHED),
    ]
    return _unique(topics)


def beside_topic(profile: Profile, simulation: str = "/sim") -> RecordedTopic:
    """Return the topic of the view from beside a simulated robot's table, which films show and no policy sees."""
    return RecordedTopic(f"{simulation}/{profile.name}/{BESIDE}", IMAGE_TYPES["compressed"], SENSOR)


def _unique(topics: Iterable[RecordedTopic]) -> tuple[RecordedTopic, ...]:
    found: dict[str, RecordedTopic] = {}
    for topic in topics:
        found.setdefault(topic.name, topic)
    return tuple(found.values())


def check_topics(summary: BagSummary, profile: Profile) -> None:
    """Check that a bag has the topics a profile requires, each of the right type.

    Raises:
        BagError: naming every topic that is missing or of another type, and what the bag holds.
    """
    found = {topic.name: topic.type for topic in summary.topics if topic.count}
    silent = {topic.name: "without a message" for topic in summary.topics if not topic.count}
    cameras = [profile.cameras.by_name[slot] for slot in profile.cameras.slots]
    wanted = {camera.topic: (IMAGE_TYPES[camera.transport], camera.required) for camera in cameras}
    wanted |= {joint.topic: (JOINT_STATE, True) for joint in profile.joints.ordered}
    problems = [
        f"{topic} is {(silent | found).get(topic, 'missing')}, expected {kind}"
        for topic, (kind, required) in wanted.items()
        if found.get(topic, kind if not required else "") != kind
    ]
    if problems:
        held = ", ".join(f"{topic} ({kind})" for topic, kind in found.items())
        raise BagError(
            f"{summary.path}: does not fit robot {profile.name}: {'; '.join(problems)}. The bag contains {held}"
        )
