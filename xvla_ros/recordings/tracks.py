# SPDX-License-Identifier: Apache-2.0
"""What a bag says over time, read without decoding a picture: joints, commands, marks of episodes, stamps of pictures.

A simulation that begins again within a bag makes its time run twice; each run is a ``Stretch`` of its own.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.observation.align import joint_topics
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE
from xvla_ros.observation.measured import MeasuredTopic
from xvla_ros.recordings.bag_files import BagMessage
from xvla_ros.recordings.bags import Bag, BagSummary
from xvla_ros.recordings.cdr import JointCommand, PoseCommand, peek_stamp, read_command, read_joint_state, read_string
from xvla_ros.recordings.cdr import command_type as type_of_command
from xvla_ros.recordings.marks import EPISODE_TOPIC, read_mark
from xvla_ros.recordings.observations import Restarts, Taken
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Floats

Times = NDArray[np.int64]

NEVER = -(1 << 62)
KEPT_S = 1.0  # of joint messages, by the node's reader


class Readings:
    """Positions over time, held as plain numbers: an hour of a pair of arms at 50 Hz is 20 MB."""

    def __init__(self) -> None:
        self._stamps, self._values = array("q"), array("d")

    def add(self, stamp: int, positions: Floats) -> None:
        """Append the positions [J] at a stamp in ns."""
        self._stamps.append(stamp)
        self._values.frombytes(np.ascontiguousarray(positions, dtype=np.float64).tobytes())

    def extend(self, stamps: Times, positions: Floats) -> None:
        """Append the positions [K, J] at stamps [K] in ns."""
        self._stamps.frombytes(np.ascontiguousarray(stamps, dtype=np.int64).tobytes())
        self._values.frombytes(np.ascontiguousarray(positions, dtype=np.float64).tobytes())

    def settle(self) -> None:
        """Put what was added in order of the stamps; of several at one stamp the first stays."""
        stamps = self.stamps
        if (stamps[1:] > stamps[:-1]).all():
            return
        times, first = np.unique(stamps, return_index=True)
        positions = self.positions[first]
        self._stamps, self._values = array("q"), array("d")
        self.extend(times, positions)

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def stamps(self) -> Times:
        """[K] in ns, not a copy: nothing can be added while it is in use."""
        return np.frombuffer(self._stamps, dtype=np.int64)

    @property
    def positions(self) -> Floats:
        """[K, J], not a copy."""
        return np.frombuffer(self._values, dtype=np.float64).reshape(len(self._stamps), -1)


class SentCommands:
    """What one group was sent, in order of receipt, held as plain numbers.

    A controller follows a trajectory until the next one takes over, and policies send plans of a second ten times a
    second: so of each only the points up to then are kept, unless it is wanted whole.

    Attributes:
        cut: receipt in ns of the newest command that was not kept whole.
    """

    def __init__(self) -> None:
        self.cut = NEVER
        self._received, self._starts = array("q"), array("q")
        self._first = array("q", [0])
        self._times, self._values = array("q"), array("d")
        self._width, self._poses = 0, False
        self._begun = NEVER

    def add(self, received: int, command: JointCommand | PoseCommand, *, whole: bool) -> None:
        """Append a command received at a ROS time in ns; ``whole`` keeps all points of the command before it."""
        if isinstance(command, PoseCommand):
            self._poses = True
            times, values = np.array([command.time]), np.concatenate([command.position, command.quaternion])[None]
        else:
            times, values = command.times, command.positions
        if times.size:
            begun = max(received, command.start or received, self._begun + 1)
            # one that is out of order may belong to another episode; the command before it then stays whole
            if not whole and self._received and received >= self._received[-1]:
                self._shorten(begun)
            self._begun, self._width = begun, values.shape[1]
        self._received.append(received)
        self._starts.append(command.start)
        self._times.frombytes(np.ascontiguousarray(times, dtype=np.int64).tobytes())
        self._values.frombytes(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        self._first.append(len(self._times))

    def _shorten(self, taken_over: int) -> None:
        """Cut the last command to the points before ``taken_over`` and one after, to interpolate up to it."""
        if self._poses:
            return
        begin, end = self._first[-2], self._first[-1]
        due = (self._starts[-1] or self._received[-1]) + np.array(self._times[begin:end], dtype=np.int64)
        kept = begin + int(np.searchsorted(due, taken_over)) + 1
        if kept < end:
            del self._times[kept:], self._values[kept * self._width :]
            self._first[-1] = kept
            self.cut = self._received[-1]

    def __getitem__(self, number: int) -> JointCommand | PoseCommand:
        part = slice(self._first[number], self._first[number + 1])
        times = np.array(self._times[part], dtype=np.int64)
        values = np.array(self._values[part.start * self._width : part.stop * self._width])
        if self._poses:
            return PoseCommand(self._starts[number], int(times[0]), values[:3], values[3:])
        return JointCommand(self._starts[number], times, values.reshape(len(times), self._width))

    def receipt(self, number: int) -> int:
        """Return the ROS time in ns at which command ``number`` was received."""
        return self._received[number]

    def within(self, start: int, end: int) -> list[int]:
        """Return the numbers of the commands received from ``start`` to ``end``, both included."""
        received = np.array(self._received, dtype=np.int64)
        found: list[int] = np.flatnonzero((received >= start) & (received <= end)).tolist()
        return found


@dataclass
class Stretch:
    """One run of ROS time.

    Attributes:
        joints: topic → stamps in ns with the positions [J of the topic] there, NaN for joints not in that message.
        commands: group → what it was sent.
        marks: [(ROS time ns, mark)] of the profile's robot.
        instructions: [(ROS time ns, text)].
        pictures: slot → stamps in ns.
    """

    joints: dict[str, Readings] = field(default_factory=dict)
    commands: dict[str, SentCommands] = field(default_factory=dict)
    marks: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    instructions: list[tuple[int, str]] = field(default_factory=list)
    pictures: dict[str, array[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tracks:
    """All stretches of a bag.

    Attributes:
        stretches: in order.
        summary: of the pass that read them, unusable messages included.
        astray: topic → how many of its messages are ignored, as their stamps are far from the time of the recording.
    """

    stretches: tuple[Stretch, ...] = ()
    summary: BagSummary | None = None
    astray: Mapping[str, int] = field(default_factory=dict)


Put = Callable[[Stretch, int], None]  # what to do with a message once its stretch and ROS time are known
_Item = tuple[int, Put]  # a message's log time, and what to do with it


def read_tracks(bag: Bag, profile: Profile, *, whole: bool | None = None) -> Tracks:
    """Read through a bag once.

    Args:
        bag: to read.
        profile: the robot.
        whole: whether to keep commands after the next one took over; None: where the mark of the episode's start says
            that they are plans.

    Raises:
        BagError: it cannot be read.
    """
    reader = _TrackReader(profile, whole)
    summary = bag.survey(reader.take)
    reader.end()
    return Tracks(tuple(reader.stretches), summary, reader.astray)


class _TrackReader:
    def __init__(self, profile: Profile, whole: bool | None) -> None:
        self._profile = profile
        self._cameras = profile.cameras.by_topic
        self._joints = {
            topic: MeasuredTopic(layout, profile, KEPT_S) for topic, layout in joint_topics(profile).items()
        }
        self._groups: dict[str, list[str]] = {}
        for group in profile.commands.groups:
            self._groups.setdefault(profile.commands.by_name[group].topic, []).append(group)
        self._instruction = f"/{profile.name}/instruction"
        self._as_marked, self._whole = whole is None, bool(whole)
        self._restarts = Restarts[_Item]({*self._cameras, *self._joints})
        self._newest: int | None = None
        self._pending: list[Put] = []  # messages without a stamp that came before the first stamp
        self.astray: Counter[str] = Counter()
        self._stretch = Stretch()
        self.stretches: list[Stretch] = []

    def take(self, message: BagMessage) -> None:
        """Take note of a message.

        Raises:
            ValueError: it cannot be used.
        """
        topic, data = message.topic, message.data
        if topic in self._cameras and (stamp := peek_stamp(data)) > 0:
            self._take(message, lambda stretch, now: self._picture(stretch, topic, stamp), stamp)
        if topic in self._joints:
            self._joint_state(message)
        for group in self._groups.get(topic, []):
            if message.type == type_of_command(self._profile, group):
                self._command(message, group)
        if topic.endswith(self._instruction):
            text = read_string(data).strip()
            self._take(message, lambda stretch, now: stretch.instructions.append((now, text)))
        if topic == EPISODE_TOPIC:
            self._mark(message)

    def end(self) -> None:
        """Place what is left, and end the last stretch."""
        with suppress(ValueError):
            self._place(self._restarts.rest())
        self._end_stretch()

    def _picture(self, stretch: Stretch, topic: str, stamp: int) -> None:
        for slot in self._cameras[topic]:
            stretch.pictures.setdefault(slot, array("q")).append(stamp)

    def _joint_state(self, message: BagMessage) -> None:
        stamp, names, positions = read_joint_state(message.data)
        joints = self._joints[message.topic]

        def put(stretch: Stretch, now: int) -> None:
            del now
            values = joints.add(stamp, names, positions, message.log_time / NS)
            self._measured(stretch, message.topic, stamp, values)

        if stamp > 0 and joints.concerns(names, positions):
            self._take(message, put, stamp)
        else:
            put(self._stretch, 0)

    def _measured(self, stretch: Stretch, topic: str, stamp: int, values: Floats | None) -> None:
        """Keep what was measured, and when, where the node's reader believes it; its observations report leaps.

        Raises:
            ValueError: the message cannot be used.
        """
        fault = self._joints[topic].fault
        if fault is not None and fault.reason != JOINTS_IMPLAUSIBLE:
            raise ValueError(f"{fault.reason}: {fault.detail}")
        if fault is None and values is not None and stamp > 0:
            stretch.joints.setdefault(topic, Readings()).add(stamp, values)

    def _command(self, message: BagMessage, group: str) -> None:
        command, whole = read_command(self._profile, group, message.data), self._whole
        self._take(
            message,
            lambda stretch, now: stretch.commands.setdefault(group, SentCommands()).add(now, command, whole=whole),
        )

    def _mark(self, message: BagMessage) -> None:
        mark = read_mark(read_string(message.data))
        if mark.get("robot", self._profile.name) == self._profile.name:
            if self._as_marked and mark["event"] == "start":
                self._whole = mark.get("actions") == "planned"
            self._take(message, lambda stretch, now: stretch.marks.append((now, mark)))

    def _take(self, message: BagMessage, put: Put, stamp: int = 0) -> None:
        self._place(self._restarts.take((message.log_time, put), message.topic, message.log_time, stamp))

    def _place(self, found: Sequence[Taken[_Item]]) -> None:
        """Put messages into the stretch in which they came.

        Those without a stamp get their ROS time: the log's where it has that clock, else the newest stamp before them.

        Raises:
            ValueError: one cannot be used; all others are placed.
        """
        unusable: ValueError | None = None
        for each in found:
            if each.again:
                self._end_stretch()
            log_time, put = each.item
            if each.astray:
                self.astray[each.topic] += 1
                continue
            if each.stamp > 0:
                self._newest = each.stamp if self._newest is None else max(each.stamp, self._newest)
                self._place_pending(each.stamp)
            now = log_time if self._restarts.by_log else self._newest
            if now is None:
                self._pending.append(put)
                continue
            try:
                put(self._stretch, now)
            except ValueError as error:
                unusable = unusable or error
        if unusable is not None:
            raise unusable

    def _place_pending(self, now: int) -> None:
        pending, self._pending = self._pending, []
        for put in pending:
            put(self._stretch, now)

    def _end_stretch(self) -> None:
        """Close this stretch and begin the next."""
        self._place_pending(0)
        for readings in self._stretch.joints.values():
            readings.settle()
        for joints in self._joints.values():
            joints.clear()
        self.stretches.append(self._stretch)
        self._stretch, self._newest = Stretch(), None
