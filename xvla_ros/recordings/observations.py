# SPDX-License-Identifier: Apache-2.0
"""Observations from a bag, built by the same ``ObservationBuilder`` as live ones and without ROS.

A bag knows what came later, so an observation is built for a chosen instant as soon as every required source has got
there: the stamp of each picture of slot 0, or the points of a regular grid. Joints are then interpolated to that very
instant, and the pictures are the newest at or before it. A message from the future waits for its time, as it does live.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import BagError, MessageError
from xvla_ros.observation.align import FUTURE_TOLERANCE, OTHER_CLOCK
from xvla_ros.observation.builder import CLOCK_BACK, ObservationBuilder
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, BuildTally, Fault
from xvla_ros.observation.images import IMAGE_TYPES, rgb_of_message
from xvla_ros.recordings.bag_files import BagMessage
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import peek_stamp, read_joint_state, typestore
from xvla_ros.recordings.marks import check_topics
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.types import NS, Observation

DECODE_PERIOD, MOST_DECODED, MOST_ASKED = 0.5, 600, 20_000  # s, instants and instants: what a verdict looks at
LOOKED_AT = 64  # messages at most, to find out whether the log has the clock of the stamps
RESTART = 1.0  # s by which the stamps of a topic fall back when a simulation begins again


def observations(
    bag: str | Path | Bag,
    profile: Profile,
    *,
    rate: float | None = None,
    at: Sequence[int] | None = None,
    instruction: str | None = None,
    wanted: Callable[[int], bool] = lambda stamp: True,
    commanded: Callable[[int], NDArray[np.float64] | None] = lambda stamp: None,
    heard: Callable[[BagMessage, int], None] = lambda message, stamp: None,
) -> Iterator[Observation | Fault]:
    """Yield one observation for every picture of slot 0, or ``rate`` times a second; a ``Fault`` where there is none.

    Only the pictures of observations that are yielded are decoded. A message that cannot be read is passed over; the
    survey of a bag counts them.

    Args:
        bag: or its path; of one that was cut short, every whole message before the cut counts.
        profile: the robot.
        rate: Hz, in the time of the stamps.
        at: stamps, ns, increasing, instead of pictures and ``rate``: those that a live node answered, say.
        instruction: what to do, in words; None takes the profile's.
        wanted: whether an observation is to be built at a stamp; asked once for each, when it is due.
        commanded: stamp → the joints [J] commanded there, rad or m in policy order, for ``proprio_source: commanded``.
        heard: called with every message of the profile's cameras and joints and its stamp, once it is taken in.

    Raises:
        BagError: no bag or a damaged one, topics missing or of another type, a rate that is not positive.
        KinematicsError: the profile's action mode reads tool poses, and its URDFs or Pinocchio cannot be had.
    """
    if rate is not None and not rate > 0.0:
        raise BagError(f"rate is {rate}; expected a positive number of observations a second")
    bag = Bag.of(bag)
    check_topics(bag.summary(), profile)
    builder = ObservationBuilder(profile, decode_image)
    schedule = _Given(at) if at is not None else _Grid(rate) if rate else _Frames()
    told = profile.instruction if instruction is None else instruction
    return (
        builder.build(each.now, each.received, told, commanded(each.due), not_after=each.due)
        for each in _instants(bag, builder, schedule, wanted, heard)
    )


def verdict(bag: str | Path | Bag, profile: Profile) -> tuple[BuildTally, int]:
    """Count what the node's reader makes of a bag: of all joint states, and of a sample of the pictures, for speed.

    Returns:
        The tally over the pictures of slot 0 (of very many, every n-th), and how many pictures were decoded: those in
        between are taken to be as good as the last one.

    Raises:
        BagError, KinematicsError: as ``observations``.
    """
    bag = Bag.of(bag)
    summary, count, decoded, due = bag.summary(), 0, 0, -math.inf
    check_topics(summary, profile)
    first_slot = profile.cameras.by_name[profile.cameras.slots[0]].topic
    every = math.ceil(sum(topic.count for topic in summary.topics if topic.name == first_slot) / MOST_ASKED)
    period = max(DECODE_PERIOD, (summary.end - summary.start) / NS / MOST_DECODED)

    def decode(serialized: bytes, camera: Camera) -> NDArray[np.uint8]:
        nonlocal decoded
        decoded += 1
        return decode_image(serialized, camera)

    def wanted(stamp: int) -> bool:
        nonlocal count
        count += 1
        return (count - 1) % every == 0

    builder, tally = ObservationBuilder(profile, decode), BuildTally()
    for each in _instants(bag, builder, _Frames(), wanted, lambda message, stamp: None):
        before = decoded
        found = (
            builder.build(each.now, each.received, "", not_after=each.due)
            if each.received >= due
            else builder.check(each.now, each.received)
        )
        due = due if decoded == before else each.received + period
        tally.add(found)
    return tally, decoded


def decode_image(serialized: bytes, camera: Camera) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] RGB of a message of a camera, serialized; the same bytes as live, see ``images``.

    Raises:
        MessageError: naming what was found and what is expected.
    """
    kind = IMAGE_TYPES[camera.transport]
    try:  # the two image types are the same in every ROS 2 distribution
        message: Any = typestore().deserialize_cdr(serialized, kind)
    except Exception as error:  # errors of struct and numpy come through rosbags
        raise MessageError(f"not a complete {kind}: {error}") from error
    return rgb_of_message(message, camera)


@dataclass(frozen=True)
class _Instant:
    """When the builder is to be asked: ROS time in ns, steady time in s, and the stamp that is due, in ns."""

    now: int
    received: float
    due: int


def _instants(
    bag: Bag,
    builder: ObservationBuilder[bytes],
    schedule: _Frames | _Grid | _Given,
    wanted: Callable[[int], bool],
    heard: Callable[[BagMessage, int], None],
) -> Iterator[_Instant]:
    """Feed a bag to a builder; yield when it has all there will be for a stamp that is due and wanted."""
    profile = builder.profile
    cameras = profile.cameras.by_topic
    first_slot = profile.cameras.by_name[profile.cameras.slots[0]].topic
    topics = {*cameras, *profile.joints.topics}
    clock, messages = _with_clock(bag.messages(topics), topics)
    timeout = round(profile.timing.observation_timeout * NS)
    asked: tuple[int, bool] | None = None  # about the instant that is due: whether it is wanted
    now, received = 0, 0.0
    for message in messages:
        received = message.log_time / NS
        try:
            stamp = feed(builder, cameras.get(message.topic, ()), message.topic, message.data, received)
        except MessageError:
            continue
        heard(message, stamp)
        before, now = now, clock.now(message.topic, message.log_time, stamp)
        if now < before - CLOCK_BACK * NS:  # the builder forgets what came before, too
            schedule.restart()
            asked = None
        if message.topic == first_slot:
            schedule.picture(stamp, now)
        while (due := schedule.due(now)) is not None:
            # asked first: to find out whether every source has got there takes long
            if asked is None or asked[0] != due:
                asked = due, wanted(due)
            if asked[1]:
                aligned = builder.aligned_stamp(now, received)
                if (
                    (aligned is None or aligned < due)
                    and now - due <= timeout
                    and not (aligned is None and _leaps(builder.check(now, received)))
                ):
                    break
                yield _Instant(now, received, due)
            schedule.done(now - timeout)
            asked = None
    for due in schedule.ahead(now) if builder.check(now, received) is not None else ():
        if wanted(due):
            yield _Instant(now, received, due)


def _leaps(fault: Fault | None) -> bool:
    """Return whether a fault is a leap of the joints; no later message mends that instant, so none is waited for."""
    return fault is not None and fault.reason == JOINTS_IMPLAUSIBLE


def _with_clock(messages: Iterator[BagMessage], topics: Collection[str]) -> tuple[BagClock, Iterator[BagMessage]]:
    """Return the clock of a bag, set by the first message of each topic, and all messages of the bag."""
    clock, first, unseen = BagClock(), [], set(topics)
    for message in messages:
        first.append(message)
        unseen.discard(message.topic)
        with suppress(MessageError):
            if clock.look_at(message.log_time, peek_stamp(message.data)):
                break
        if not unseen or len(first) == LOOKED_AT:
            break
    return clock, chain(first, messages)


def feed(builder: ObservationBuilder[bytes], cameras: Collection[str], topic: str, data: bytes, received: float) -> int:
    """Hand a serialized message to the builder as a subscription does: a picture of ``cameras``, else a joint state.

    Returns:
        Its stamp in ns; 0 for a joint state without the robot's joints, whose time means nothing.

    Raises:
        MessageError: it cannot be read.
    """
    if cameras:
        stamp = peek_stamp(data)
        for camera in cameras:
            builder.add_image(camera, stamp, data, received)
        return stamp
    stamp, names, positions = read_joint_state(data)
    builder.add_joints(topic, stamp, names, positions, received)
    return stamp if builder.concerns(topic, names, positions) else 0


class Restarts:
    """Counts how often a simulation began again: the same messages in the same order give the same count."""

    def __init__(self) -> None:
        self.count = 0
        self._newest: dict[str, int] = {}

    def heard(self, topic: str, stamp: int) -> bool:
        """Take note of a stamp; return whether time began again with it.

        Stamps are compared within a topic: one without stamps, or with another clock, is no restart. Neither is a
        message without a stamp.
        """
        if stamp <= 0:
            return False
        newest = self._newest.get(topic)
        if newest is not None and stamp < newest - RESTART * NS:
            self._newest = {topic: stamp}
            self.count += 1
            return True
        self._newest[topic] = stamp if newest is None else max(stamp, newest)
        return False


class BagClock:
    """ROS time as it was when a message was recorded.

    That is the log time, unless the log has another clock than all stamps, as a recorder without use_sim_time has;
    then it is the newest stamp so far.
    """

    def __init__(self) -> None:
        self._logs_ros_time = False
        self._restarts = Restarts()
        self._newest = 0

    def look_at(self, log_time: int, stamp: int) -> bool:
        """Take note of a message's two times; return whether the log has been found to have the clock of stamps."""
        self._logs_ros_time = self._logs_ros_time or abs(log_time - stamp) < OTHER_CLOCK * NS
        return self._logs_ros_time

    def now(self, topic: str, log_time: int, stamp: int) -> int:
        """Return ROS time in ns at a message with this log time and stamp."""
        if stamp > 0:
            self.look_at(log_time, stamp)
        again = self._restarts.heard(topic, stamp)
        self._newest = stamp if again else max(stamp, self._newest)
        return log_time if self._logs_ros_time else self._newest


class _Frames:
    """An observation is wanted at the stamp of every picture of slot 0, when its time has come."""

    def __init__(self) -> None:
        self._waiting: list[int] = []  # a heap
        self._due: int | None = None

    def restart(self) -> None:
        self._waiting, self._due = [], None

    def picture(self, stamp: int, now: int) -> None:
        del now
        heapq.heappush(self._waiting, stamp)

    def due(self, now: int) -> int | None:
        if self._due is None and self._waiting and self._waiting[0] <= now + FUTURE_TOLERANCE * NS:
            self._due = heapq.heappop(self._waiting)
        return self._due

    def done(self, too_old: int) -> None:
        del too_old
        self._due = None

    def ahead(self, now: int) -> list[int]:
        """Return the stamps whose time had not come when the bag ended."""
        return sorted(stamp for stamp in self._waiting if stamp > now + FUTURE_TOLERANCE * NS)


class _Given:
    """An observation is wanted at stamps that are known beforehand."""

    def __init__(self, stamps: Sequence[int]) -> None:
        self._waiting = deque(stamps)

    def restart(self) -> None:
        pass

    def picture(self, stamp: int, now: int) -> None:
        del stamp, now

    def due(self, now: int) -> int | None:
        return self._waiting[0] if self._waiting and self._waiting[0] <= now else None

    def done(self, too_old: int) -> None:
        del too_old
        self._waiting.popleft()

    def ahead(self, now: int) -> list[int]:
        del now
        return []


class _Grid:
    """An observation is wanted every period, from the first picture of slot 0 on."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._start: int | None = None
        self._count = 0

    def restart(self) -> None:
        self._start = None

    def picture(self, stamp: int, now: int) -> None:
        if self._start is None:
            self._start, self._count = min(stamp, now + round(FUTURE_TOLERANCE * NS)), 0

    def due(self, now: int) -> int | None:
        if self._start is None:
            return None
        due = self._start + round(self._count * NS / self._rate)
        return due if due <= now else None

    def done(self, too_old: int) -> None:
        # a pause in the bag is one fault, not one for every period of it
        self._count += 1
        if self._start is not None:
            self._count = max(self._count, math.ceil((too_old - self._start) * self._rate / NS))

    def ahead(self, now: int) -> list[int]:
        del now
        return []
