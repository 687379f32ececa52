"""What a bag says over time, read without decoding a picture: joints, commands, marks of episodes, stamps of pictures.

A simulation that begins again within a bag makes its time run twice; each run is a ``Stretch`` of its own.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.observation.align import NS, OTHER_CLOCK
from xvla_ros.observation.bag_files import BagMessage, bag_messages
from xvla_ros.observation.bag_writer import EPISODE_TOPIC, EVENTS
from xvla_ros.observation.cdr import CdrError, peek_stamp, read_joint_state, read_string
from xvla_ros.observation.commands import JointCommand, PoseCommand, read_command
from xvla_ros.observation.commands import command_type as type_of_command
from xvla_ros.observation.joints import JointsError, joint_topics
from xvla_ros.robots.profile import Profile

Floats = NDArray[np.float64]

RESTART = NS  # a topic whose stamps fall back by more begins anew


class Readings:
    """Positions of one joint topic over time, held as plain numbers: an hour of them is a few megabytes."""

    def __init__(self) -> None:
        self._stamps, self._values = array("q"), array("d")

    def add(self, stamp: int, positions: Floats) -> None:
        """Append the positions [J] at a stamp in ns."""
        self._stamps.append(stamp)
        self._values.frombytes(np.ascontiguousarray(positions, dtype=np.float64).tobytes())

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def stamps(self) -> NDArray[np.int64]:
        """[K] in ns."""
        return np.array(self._stamps, dtype=np.int64)

    @property
    def positions(self) -> Floats:
        """[K, J]."""
        return np.array(self._values, dtype=np.float64).reshape(len(self._stamps), -1)


@dataclass
class Stretch:
    """One run of ROS time.

    Attributes:
        joints: topic → stamps in ns with the positions [J of the topic] there.
        commands: group → [(receipt, ROS time ns, command)].
        marks: [(ROS time ns, mark)] of the profile's robot.
        instructions: [(ROS time ns, text)].
        pictures: slot → stamps in ns.
    """

    joints: dict[str, Readings] = field(default_factory=dict)
    commands: dict[str, list[tuple[int, JointCommand | PoseCommand]]] = field(default_factory=dict)
    marks: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    instructions: list[tuple[int, str]] = field(default_factory=list)
    pictures: dict[str, array[int]] = field(default_factory=dict)


@dataclass
class Tracks:
    """All stretches of a bag, and what could not be read: topic → [messages, the first one's problem]."""

    stretches: list[Stretch]
    broken: dict[str, tuple[int, str]]


class Restarts:
    """Counts the stretches: the same messages in the same order give the same count."""

    def __init__(self) -> None:
        self.count = 0
        self._newest: dict[str, int] = {}

    def heard(self, topic: str, stamp: int) -> bool:
        """Take note of a stamp; return whether time began again with it."""
        newest = self._newest.get(topic)
        if newest is not None and stamp < newest - RESTART:
            self._newest = {topic: stamp}
            self.count += 1
            return True
        self._newest[topic] = stamp if newest is None else max(stamp, newest)
        return False


def read_tracks(path: Path, profile: Profile, instructions: Collection[str]) -> Tracks:
    """Read through a bag once.

    Args:
        path: of the bag.
        profile: the robot.
        instructions: topics on which its instructions were recorded.

    Raises:
        BagError: it cannot be read.
    """
    reader = _Reader(profile, instructions)
    for message in bag_messages(path, reader.topics):
        reader.take(message)
    reader.end_stretch()
    return Tracks(reader.stretches, reader.broken)


class _Reader:
    def __init__(self, profile: Profile, instructions: Collection[str]) -> None:
        self._profile = profile
        self._cameras: dict[str, list[str]] = {}
        for slot in profile.cameras.slots:
            self._cameras.setdefault(profile.cameras.by_name[slot].topic, []).append(slot)
        self._joints = joint_topics(profile)
        self._groups: dict[str, list[str]] = {}
        for group in profile.commands.groups:
            self._groups.setdefault(profile.commands.by_name[group].topic, []).append(group)
        self._instructions = set(instructions)
        self._restarts = Restarts()
        self._same_clock: bool | None = None
        self._newest: int | None = None
        self._first: int | None = None
        # what has no stamp of its own, until it is known whether the log has the clock of the stamps
        self._pending: list[tuple[int, int | None, Callable[[Stretch, int], None]]] = []
        self._stretch = Stretch()
        self.stretches: list[Stretch] = []
        self.broken: dict[str, tuple[int, str]] = {}

    @property
    def topics(self) -> set[str]:
        return {*self._cameras, *self._joints, *self._groups, *self._instructions, EPISODE_TOPIC}

    def take(self, message: BagMessage) -> None:
        try:
            self._take(message)
        except (CdrError, JointsError, ValueError) as error:
            count, first = self.broken.get(message.topic, (0, str(error)))
            self.broken[message.topic] = count + 1, first

    def _take(self, message: BagMessage) -> None:
        topic, data = message.topic, message.data
        if topic in self._cameras:
            self._stamped(message, stamp := peek_stamp(data))
            for slot in self._cameras[topic]:
                self._stretch.pictures.setdefault(slot, array("q")).append(stamp)
        if topic in self._joints:
            stamp, names, positions = read_joint_state(data)
            self._stamped(message, stamp)
            values = self._joints[topic].read(names, positions)
            if values is not None:
                self._stretch.joints.setdefault(topic, Readings()).add(stamp, values)
        for group in self._groups.get(topic, []):
            if message.type == type_of_command(self._profile, group):
                self._command(message, group)
        if topic in self._instructions:
            text = read_string(data).strip()
            self._later(message, lambda stretch, now: stretch.instructions.append((now, text)))
        if topic == EPISODE_TOPIC:
            self._mark(message)

    def _command(self, message: BagMessage, group: str) -> None:
        command = read_command(self._profile, group, message.data)
        self._later(message, lambda stretch, now: stretch.commands.setdefault(group, []).append((now, command)))

    def _mark(self, message: BagMessage) -> None:
        mark = json.loads(read_string(message.data))
        if not isinstance(mark, dict) or mark.get("event") not in EVENTS:
            raise CdrError(f"a mark {mark!r}; expected an object whose event is one of {', '.join(EVENTS)}")
        if mark.get("robot", self._profile.name) == self._profile.name:
            self._later(message, lambda stretch, now: stretch.marks.append((now, mark)))

    def _stamped(self, message: BagMessage, stamp: int) -> None:
        if self._same_clock is None:
            self._same_clock = abs(message.log_time - stamp) < OTHER_CLOCK * NS
        if self._restarts.heard(message.topic, stamp):
            self.end_stretch()
        self._first = stamp if self._first is None else self._first
        self._newest = stamp if self._newest is None else max(stamp, self._newest)

    def _later(self, message: BagMessage, put: Callable[[Stretch, int], None]) -> None:
        self._pending.append((message.log_time, self._newest, put))

    def end_stretch(self) -> None:
        """Give what had no stamp its ROS time: the log's where it has that clock, else the newest stamp before it."""
        pending, self._pending = self._pending, []
        for log_time, newest, put in pending:
            if self._same_clock and newest is not None and log_time < newest - RESTART:
                self._pending.append((log_time, None, put))  # logged when time had begun again
                continue
            now = log_time if self._same_clock else newest if newest is not None else self._first
            if now is not None:
                put(self._stretch, now)
        self.stretches.append(self._stretch)
        self._stretch, self._newest, self._first = Stretch(), None, None
