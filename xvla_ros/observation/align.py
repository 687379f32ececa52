# SPDX-License-Identifier: Apache-2.0
"""What has lately arrived, and what of it belongs to one instant: a buffer per topic, joints by name, alignment."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import MessageError
from xvla_ros.limits import KEPT_BYTES, WIDTH
from xvla_ros.observation.faults import CAMERA_MISSING, CAMERA_STALE, JOINTS_MISSING, JOINTS_STALE, Fault
from xvla_ros.types import NS, Floats

T = TypeVar("T")

_by_stamp = attrgetter("stamp")

KEPT_AT_LEAST = 8  # so that a source slower than the horizon still has a frame at or before the common stamp


@dataclass(frozen=True, slots=True, eq=False)
class Stamped(Generic[T]):
    """One message: its header stamp in ns of ROS time, when it was received (s, steady clock), what it carries."""

    stamp: int
    received: float
    value: T


class RecentMessages(Generic[T]):
    """The messages of one topic received within the last ``horizon`` seconds, at most ``capacity`` of them.

    They are at most ``KEPT_BYTES`` together, as far as ``add`` is told their sizes; the newest stays in any case.
    Messages are dropped by the time they were received, never by their stamp: a stamp far in the future, or a clock
    that starts again from zero, cannot push good messages out. Not thread-safe.
    """

    def __init__(self, horizon: float, capacity: int) -> None:
        self._horizon = horizon
        self._messages: deque[Stamped[T]] = deque()
        self._sizes: deque[int] = deque()
        self._capacity, self._bytes = capacity, 0

    def add(self, message: Stamped[T], size: int = 0) -> None:
        """Append a message of ``size`` bytes; drop those received longer than the horizon ago, or beyond the limits."""
        self._messages.append(message)
        self._sizes.append(size)
        self._bytes += size
        oldest = message.received - self._horizon
        while len(self._messages) > 1 and (
            len(self._messages) > self._capacity
            or self._bytes > KEPT_BYTES
            or (len(self._messages) > KEPT_AT_LEAST and self._messages[0].received < oldest)
        ):
            self._messages.popleft()
            self._bytes -= self._sizes.popleft()

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()
        self._sizes.clear()
        self._bytes = 0

    def snapshot(self) -> tuple[Stamped[T], ...]:
        """Return what is kept, in order of arrival."""
        return tuple(self._messages)


def in_order(messages: Sequence[Stamped[T]], not_after: int) -> list[Stamped[T]]:
    """Return the messages stamped at or before ``not_after``, by stamp; of equal stamps the first that arrived."""
    ordered = sorted((message for message in messages if message.stamp <= not_after), key=_by_stamp)
    return [
        message
        for before, message in zip([None, *ordered], ordered, strict=False)
        if before is None or before.stamp != message.stamp
    ]


def newest_at(ordered: Sequence[Stamped[T]], stamp: int) -> Stamped[T] | None:
    """Return the newest message at or before ``stamp``, or None. ``ordered`` is in order of stamp."""
    index = bisect_right(ordered, stamp, key=_by_stamp)
    return ordered[index - 1] if index else None


def neighbours(ordered: Sequence[Stamped[T]], stamp: int) -> tuple[Stamped[T], Stamped[T]] | None:
    """Return the messages that enclose ``stamp``, the same one twice where one lies on it; None outside of them."""
    index = bisect_left(ordered, stamp, key=_by_stamp)
    if index == len(ordered):
        return None
    if ordered[index].stamp == stamp:
        return ordered[index], ordered[index]
    return (ordered[index - 1], ordered[index]) if index else None


if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile


NAMES_SHOWN = 6
# A joint may be read outside its limits, because of encoders, offsets or narrow limits, but no further than its range
# or a turn: values beyond have another unit, or are no positions.
TURN = 2 * np.pi


class JointTopic:
    """The joints a profile expects on one topic.

    Attributes:
        topic: its name.
        indices: int [J], the places of these joints in ``policy_order``.
        names: J names as the messages have them.
    """

    def __init__(self, topic: str, profile: Profile) -> None:
        found = [(place, joint) for place, joint in enumerate(profile.joints.ordered) if joint.topic == topic]
        joints = [joint for _, joint in found]
        self.topic = topic
        self.indices = np.array([place for place, _ in found], dtype=np.intp)
        self.names = tuple(joint.name for joint in joints)
        self._lower, self._upper = np.array([[joint.lower, joint.upper] for joint in joints], dtype=np.float64).T
        self._beyond = np.maximum(self._upper - self._lower, TURN)
        self._last_layout: tuple[tuple[str, ...], NDArray[np.intp], NDArray[np.intp]] | None = None

    def read(self, names: Sequence[str], positions: ArrayLike) -> Floats | None:
        """Return float64 [J], the positions of this profile's joints (rad or m), NaN for those not in the message.

        The order of ``names`` is free, further joints may be among them, and joints may come in messages of their own.

        Returns:
            None for a message without any of the profile's joints, however malformed, or without positions, as
            another publisher on a shared topic may send.

        Raises:
            MessageError: joints named twice, as many positions as names not there, NaN, Inf or what no joint can have.
        """
        if len(names) > WIDTH:
            raise MessageError(f"{self.topic}: {len(names)} joint names; expected at most {WIDTH}")
        if set(self.names).isdisjoint(names):
            return None
        found = tuple(names)
        values = self._as_vector(found, positions)
        if not values.size:
            return None
        places, columns = self._layout(found)
        chosen = np.full(len(self.names), np.nan)
        chosen[places] = values[columns]
        self._check(chosen, places)
        return chosen

    def _as_vector(self, names: tuple[str, ...], positions: ArrayLike) -> Floats:
        try:
            values = np.asarray(positions, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise MessageError(f"{self.topic}: positions are not numbers ({error})") from None
        if values.size and values.shape != (len(names),):
            raise MessageError(f"{self.topic}: {values.size} positions for {len(names)} names; expected one for each")
        return values

    def _layout(self, names: tuple[str, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which of these joints a message has, and in which of its columns."""
        # publishers keep their order, so the last layout nearly always serves again
        if self._last_layout is not None and self._last_layout[0] == names:
            return self._last_layout[1:]
        held = set(names)
        places = [place for place, name in enumerate(self.names) if name in held]
        twice = [self.names[place] for place in places if names.count(self.names[place]) > 1]
        if twice:
            raise MessageError(f"{self.topic}: {', '.join(twice)} named more than once; expected once")
        columns = [names.index(self.names[place]) for place in places]
        self._last_layout = names, np.array(places, dtype=np.intp), np.array(columns, dtype=np.intp)
        return self._last_layout[1:]

    def _check(self, chosen: Floats, places: NDArray[np.intp]) -> None:
        found = chosen[places]
        if not np.isfinite(found).all():
            bad = places[~np.isfinite(found)]
            raise MessageError(f"{self.topic}: {self._listed(bad, chosen)}; expected finite positions")
        far = (found < (self._lower - self._beyond)[places]) | (found > (self._upper + self._beyond)[places])
        if far.any():
            worst = places[far]
            between = f"{self._lower[worst[0]]:.3g} to {self._upper[worst[0]]:.3g} rad or m"
            as_degrees = np.radians(chosen[worst])
            fits = ((as_degrees >= self._lower[worst]) & (as_degrees <= self._upper[worst])).all()
            hint = (
                ("these values fit as degrees, but ROS uses radians")
                if fits
                else "check the unit that its driver publishes"
            )
            raise MessageError(
                f"{self.topic}: {self._listed(worst, chosen)}; {self.names[worst[0]]} goes from {between}: {hint}"
            )

    def _listed(self, places: NDArray[np.intp], chosen: Floats) -> str:
        return ", ".join(f"{self.names[place]} = {chosen[place]:g}" for place in places)


def joint_topics(profile: Profile) -> dict[str, JointTopic]:
    """Return the joint topics of a profile, in the order of their first joint."""
    return {topic: JointTopic(topic, profile) for topic in profile.joints.topics}


def interpolate(before: Floats, after: Floats, share: float) -> Floats:
    """Return the point ``share`` (0..1) of the way from ``before`` to ``after``, never outside of the two."""
    # in this form two large values of opposite sign do not overflow
    between = (1.0 - share) * before + share * after
    return np.clip(between, np.minimum(before, after), np.maximum(before, after))


def shown(names: Sequence[str]) -> str:
    """Return names for a message to a person: the first few, then how many more."""
    listed = ", ".join(names[:NAMES_SHOWN]) or "no names"
    more = len(names) - NAMES_SHOWN
    return f"{listed} and {more} more" if more > 0 else listed


FUTURE_TOLERANCE = 0.1  # s; a simulator's messages may overtake its /clock, and two machines' clocks differ a little
OTHER_CLOCK = 60.0  # s; a stamp this far from now is from another clock, not from a slow source


@dataclass(frozen=True)
class TopicSource(Generic[T]):
    """What is known of one topic at one moment.

    Attributes:
        name: the camera, or the joint topic.
        topic: its ROS topic.
        messages: what has lately arrived, in any order.
        max_age: s, ROS time, within which the newest message, and the one used, must lie.
        max_silence: s, steady clock, within which a new message must have come in.
        required: without it there is no observation.
        missing, stale: the reasons of its faults.
        fault: why its messages are not to be used; None while they are.
        heard: what came instead where there are no messages; empty for nothing.
    """

    name: str
    topic: str
    messages: Sequence[Stamped[T]]
    max_age: float
    max_silence: float
    required: bool = True
    missing: str = CAMERA_MISSING
    stale: str = CAMERA_STALE
    fault: Fault | None = None
    heard: str = ""


@dataclass(frozen=True)
class JointSource(TopicSource[NDArray[np.float64]]):
    """Joints of one topic that come in the same messages; ``places``: theirs in policy order."""

    missing: str = JOINTS_MISSING
    stale: str = JOINTS_STALE
    places: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))


@dataclass(frozen=True)
class Alignment:
    """A common stamp, the frame of each camera at or before it, the joints of each topic at it.

    Attributes:
        stamp: the common stamp.
        frames: camera → its newest frame at or before the stamp. Optional cameras without one have no entry.
        positions: float64 [J], rad or m, interpolated to the stamp, in policy order.
        age: camera or joint source → s between its newest message at or before the stamp, and the stamp.
    """

    stamp: int
    frames: dict[str, Stamped[Any]]
    positions: NDArray[np.float64]
    age: dict[str, float]


def align(
    cameras: Sequence[TopicSource[Any]],
    joints: Sequence[JointSource],
    now: int,
    steady_now: float,
    timeout: float,
    not_after: int | None = None,
) -> Alignment | Fault:
    """Return frames and joints at the newest instant that every required source has reached, or a fault.

    That instant is the oldest of the newest stamps of the required cameras and the joint topics, or ``not_after`` if
    that is older.

    Args:
        now: ROS time, ns. Messages stamped more than ``FUTURE_TOLERANCE`` later are ignored.
        steady_now: steady clock, s.
        timeout: s that the instant may lie before ``now``, and that two joint messages may lie apart to be
            interpolated between.
    """
    latest = now + round(FUTURE_TOLERANCE * NS)
    ordered = {source.name: in_order(source.messages, latest) for source in (*cameras, *joints)}
    faults = {
        source.name: fault
        for source in (*joints, *cameras)
        if (fault := _fault_of(source, ordered[source.name], now, steady_now))
    }
    if fault := _gathered(
        faults[source.name] for source in (*joints, *cameras) if source.required and source.name in faults
    ):
        return fault
    fresh = [camera for camera in cameras if camera.name not in faults]
    awaited = [source for source in (*fresh, *joints) if source.required]
    slowest = min(awaited, key=lambda source: ordered[source.name][-1].stamp)
    stamp = ordered[slowest.name][-1].stamp
    if now - stamp > timeout * NS:
        return Fault(
            slowest.stale,
            f"{slowest.name}: newest message on {slowest.topic} is {_ago(now - stamp)} old; "
            f"expected at most observation_timeout {timeout:g} s",
        )
    stamp = stamp if not_after is None else min(stamp, not_after)
    return _gather_at(stamp, fresh, joints, ordered, timeout)


def _fault_of(source: TopicSource[Any], ordered: Sequence[Stamped[Any]], now: int, steady_now: float) -> Fault | None:
    """Return what is wrong with one source taken by itself."""
    if source.fault is not None:
        return source.fault
    if not source.messages:
        return Fault(source.missing, f"{source.name}: {source.heard or f'nothing received on {source.topic}'}")
    if not ordered:
        ahead = min(message.stamp for message in source.messages) - now
        return Fault(
            source.stale,
            f"{source.name}: messages on {source.topic} are stamped {_ago(ahead)} ahead of ROS "
            f"time; expected at most {FUTURE_TOLERANCE:g} s. Synchronise the clocks, or set use_sim_time "
            "to the same value in every node",
        )
    newest = ordered[-1]
    silence, age = steady_now - newest.received, now - newest.stamp
    if age > source.max_age * NS:
        still_coming = steady_now - source.messages[-1].received <= source.max_silence
        hint = (
            "; messages still arrive, so their clock differs from this node's: synchronise the clocks, or set "
            "use_sim_time to the same value in every node"
            if age > OTHER_CLOCK * NS and still_coming
            else ""
        )
        return Fault(
            source.stale,
            f"{source.name}: newest message on {source.topic} is {_ago(age)} old; expected at "
            f"most {source.max_age:g} s{hint}",
        )
    if silence > source.max_silence:
        return Fault(
            source.stale,
            f"{source.name}: nothing new on {source.topic} for {silence:.2f} s of wall time; "
            f"expected within {source.max_silence:g} s",
        )
    return None


def _gather_at(
    stamp: int,
    cameras: Sequence[TopicSource[Any]],
    joints: Sequence[JointSource],
    ordered: dict[str, list[Stamped[Any]]],
    timeout: float,
) -> Alignment | Fault:
    result = Alignment(stamp, {}, np.empty(sum(source.places.size for source in joints)), {})
    faults: list[Fault] = []
    for source in joints:
        found = _joints_at(stamp, source, ordered[source.name], timeout)
        if isinstance(found, Fault):
            faults.append(found)
            continue
        result.positions[source.places], result.age[source.name] = found
    for camera in cameras:
        frame = newest_at(ordered[camera.name], stamp)
        fault = _frame_fault(stamp, camera, frame)
        if frame is not None and fault is None:
            result.frames[camera.name] = frame
            result.age[camera.name] = (stamp - frame.stamp) / NS
        elif fault is not None and camera.required:
            faults.append(fault)
    return _gathered(faults) or result


def _joints_at(
    stamp: int, source: JointSource, ordered: Sequence[Stamped[NDArray[np.float64]]], timeout: float
) -> tuple[NDArray[np.float64], float] | Fault:
    enclosing = neighbours(ordered, stamp)
    if enclosing is None:
        return Fault(
            JOINTS_MISSING,
            f"{source.name}: the first message is {_ago(ordered[0].stamp - stamp)} later than "
            "the newest image; waiting for the next image",
        )
    before, after = enclosing
    gap = after.stamp - before.stamp
    if gap > timeout * NS:
        return Fault(
            JOINTS_STALE,
            f"{source.name}: {_ago(gap)} between two messages; expected at most "
            f"observation_timeout {timeout:g} s to interpolate between them",
        )
    share = (stamp - before.stamp) / gap if gap else 0.0
    return interpolate(before.value, after.value, share), (stamp - before.stamp) / NS


def _frame_fault(stamp: int, camera: TopicSource[Any], frame: Stamped[Any] | None) -> Fault | None:
    if frame is None:
        return Fault(
            CAMERA_MISSING,
            f"{camera.name}: no image yet at or before the newest joint states and the images of the "
            "other cameras; waiting for one",
        )
    if stamp - frame.stamp > camera.max_age * NS:
        return Fault(
            CAMERA_STALE,
            f"{camera.name}: image on {camera.topic} is {_ago(stamp - frame.stamp)} older "
            f"than the joint states that it is used with; expected at most {camera.max_age:g} s",
        )
    return None


def _gathered(faults: Iterable[Fault]) -> Fault | None:
    """Return the first fault with the details of all faults of its reason."""
    found = list(faults)
    if not found:
        return None
    return Fault(found[0].reason, "; ".join(fault.detail for fault in found if fault.reason == found[0].reason))


def _ago(ns: int) -> str:
    return f"{ns / NS:.2f} s"
