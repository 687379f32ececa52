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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import BagError, MessageError
from xvla_ros.observation.align import FUTURE_TOLERANCE, OTHER_CLOCK
from xvla_ros.observation.builder import CLOCK_BACK, ObservationBuilder
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, BuildTally, Fault
from xvla_ros.observation.images import IMAGE_TYPES, rgb_of_message
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import peek_stamp, read_joint_state, typestore
from xvla_ros.recordings.marks import check_topics
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.types import NS, Observation

DECODE_PERIOD, MOST_DECODED, MOST_ASKED = 0.5, 600, 20_000  # s, instants and instants: what a verdict looks at
LOOKED_AT = 64  # messages at most, to find out whether the log has the clock of the stamps
RESTART = 1.0  # s by which time falls back when a simulation begins again
SEVERAL = 5  # messages of a topic in a row whose stamps fell back: fewer are wrong stamps
MOST_HELD = 100  # messages that wait until it is known whether time began again

Item = TypeVar("Item")


def observations(
    bag: str | Path | Bag,
    profile: Profile,
    *,
    rate: float | None = None,
    at: Sequence[int] | None = None,
    instruction: str | None = None,
    wanted: Callable[[int], bool] = lambda stamp: True,
    commanded: Callable[[int], NDArray[np.float64] | None] = lambda stamp: None,
    begun: Callable[[], None] = lambda: None,
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
        begun: called where time begins again, as when a simulation is reset.

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
        for each in _instants(bag, builder, schedule, wanted, begun)
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
    damaged: Fault | None = None  # what was wrong with the pictures decoded last
    for each in _instants(bag, builder, _Frames(), wanted, lambda: None):
        before = decoded
        found = (
            builder.build(each.now, each.received, "", not_after=each.due)
            if each.received >= due
            else builder.check(each.now, each.received) or damaged
        )
        if decoded != before:
            due, damaged = each.received + period, found if isinstance(found, Fault) else None
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
    begun: Callable[[], None],
) -> Iterator[_Instant]:
    """Feed a bag to a builder; yield when it has all there will be for a stamp that is due and wanted."""
    profile = builder.profile
    first_slot = profile.cameras.by_name[profile.cameras.slots[0]].topic
    timeout = round(profile.timing.observation_timeout * NS)
    asked: tuple[int, bool] | None = None  # about the instant that is due: whether it is wanted
    now, received, shift = 0, 0.0, 0.0
    for each in _taken_in(bag, builder):
        before, now = now, each.now
        if each.again:
            begun()
            shift = max(received - each.log_time / NS, shift)  # a steady clock goes on, the log's may not
            builder.check(now, each.log_time / NS + shift)  # so that it forgets the time before
        received = each.log_time / NS + shift
        each.add(received)
        if now < before - CLOCK_BACK * NS:  # the builder forgets what came before, too
            schedule.restart()
            asked = None
        if each.topic == first_slot:
            schedule.picture(each.stamp, now)
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


@dataclass(frozen=True, slots=True)
class _TakenIn:
    """A message for the builder: ``add`` hands it over, ``now`` is its ROS time, ``again`` where that began again."""

    topic: str
    log_time: int
    stamp: int
    add: Callable[[float], None]
    now: int = 0
    again: bool = False


def _taken_in(bag: Bag, builder: ObservationBuilder[bytes]) -> Iterator[_TakenIn]:
    """Yield the messages of a bag that can be read; without those whose stamps alone say that they are astray."""
    profile = builder.profile
    cameras = profile.cameras.by_topic
    topics = {*cameras, *profile.joints.topics}
    restarts, now = Restarts[_TakenIn](topics), 0

    def taken() -> Iterator[Taken[_TakenIn]]:
        for message in bag.messages(topics):
            with suppress(MessageError):
                stamp, add = _read(builder, cameras.get(message.topic, ()), message.topic, message.data)
                item = _TakenIn(message.topic, message.log_time, stamp, add)
                yield from restarts.take(item, message.topic, message.log_time, stamp)
        yield from restarts.rest()

    for each in taken():
        if each.astray and not restarts.by_log:
            continue  # the node has a clock to judge it by; here there is none
        item = each.item
        now = item.log_time if restarts.by_log else item.stamp if each.again else max(now, item.stamp)
        yield replace(item, now=now, again=each.again)


def _leaps(fault: Fault | None) -> bool:
    """Return whether a fault is a leap of the joints; no later message mends that instant, so none is waited for."""
    return fault is not None and fault.reason == JOINTS_IMPLAUSIBLE


def feed(builder: ObservationBuilder[bytes], cameras: Collection[str], topic: str, data: bytes, received: float) -> int:
    """Hand a serialized message to the builder as a subscription does: a picture of ``cameras``, else a joint state.

    Returns:
        Its stamp in ns; 0 for a joint state without the robot's joints, whose time means nothing.

    Raises:
        MessageError: it cannot be read.
    """
    stamp, add = _read(builder, cameras, topic, data)
    add(received)
    return stamp


def _read(
    builder: ObservationBuilder[bytes], cameras: Collection[str], topic: str, data: bytes
) -> tuple[int, Callable[[float], None]]:
    """Return the stamp as ``feed`` does, and what hands the message over, given its time of receipt in s."""
    if cameras:
        stamp = peek_stamp(data)

        def add_pictures(received: float) -> None:
            for camera in cameras:
                builder.add_image(camera, stamp, data, received)

        return stamp, add_pictures
    stamp, names, positions = read_joint_state(data)
    counts = builder.concerns(topic, names, positions)
    return stamp if counts else 0, lambda received: builder.add_joints(topic, stamp, names, positions, received)


@dataclass(slots=True)
class Taken(Generic[Item]):
    """What ``Restarts`` took: whether time began again with it, whether its stamp is astray (None: not known yet)."""

    item: Item
    topic: str = ""
    stamp: int = 0
    again: bool = False
    astray: bool | None = False


class Restarts(Generic[Item]):
    """Finds where time began again in a stream of messages: the same stamped messages in the same order give the same.

    Where the log has the clock of the stamps, time began again where the log fell back, whatever one stamp says. Else
    only stamps can tell, each topic by itself: several in a row must have fallen back, and none in between must go on
    where time was. What comes meanwhile is held until that is known.

    Args:
        topics: those with stamps.

    Attributes:
        by_log: whether the log has the clock of the stamps, as the first of these messages say; None until that is
            known, and until then all are held.
    """

    def __init__(self, topics: Collection[str]) -> None:
        self.by_log: bool | None = None
        self._unseen, self._first = set(topics), list[tuple[Item, str, int, int]]()
        self._log_time = -(1 << 62)
        self._newest: dict[str, int] = {}
        self._rivals: dict[str, list[int]] = {}  # topic → stamps in a row that are far from its newest
        self._held: list[Taken[Item]] = []

    def take(self, item: Item, topic: str, log_time: int, stamp: int) -> list[Taken[Item]]:
        """Take a message, ``stamp`` 0 for one without a stamp that counts; return those that are held no longer."""
        if self.by_log is None:
            self._first.append((item, topic, log_time, stamp))
            return self._take_first() if stamp > 0 and self._knows(topic, log_time, stamp) else []
        taken = Taken(item, topic, stamp)
        if self.by_log:
            return self._take_by_log(taken, log_time)
        self._held.append(taken)
        if stamp > 0:
            self._judge(taken)
        return [] if self._rivals and sum(each.stamp > 0 for each in self._held) < MOST_HELD else self._release()

    def rest(self) -> list[Taken[Item]]:
        """Return what is held still: time has not begun again."""
        self.by_log = bool(self.by_log)
        return [*self._take_first(), *self._release()]

    def _knows(self, topic: str, log_time: int, stamp: int) -> bool:
        self._unseen.discard(topic)
        if abs(log_time - stamp) < OTHER_CLOCK * NS:
            self.by_log = True
        elif not self._unseen or sum(stamp > 0 for *_, stamp in self._first) >= LOOKED_AT:
            self.by_log = False
        return self.by_log is not None

    def _take_first(self) -> list[Taken[Item]]:
        first, self._first = self._first, []
        return [taken for each in first for taken in self.take(*each)]

    def _release(self) -> list[Taken[Item]]:
        for topic in list(self._rivals):
            self._reject(topic)
        held, self._held = self._held, []
        return held

    def _take_by_log(self, taken: Taken[Item], log_time: int) -> list[Taken[Item]]:
        again = log_time < self._log_time - RESTART * NS
        if taken.stamp <= 0 and not again:
            return [taken]
        self._held.append(taken)
        if taken.stamp <= 0:
            return []  # of the next run, unless no stamp follows
        if again:
            self._newest.clear()
            self._held[0].again = True
        self._log_time = log_time if again else max(log_time, self._log_time)
        newest = self._newest.get(taken.topic, taken.stamp)
        taken.astray = not newest - RESTART * NS <= taken.stamp <= log_time + RESTART * NS
        if not taken.astray:
            self._newest[taken.topic] = max(newest, taken.stamp)
        return self._release()

    def _judge(self, taken: Taken[Item]) -> None:
        topic, stamp = taken.topic, taken.stamp
        newest = self._newest.get(topic, stamp)
        latest = max(self._newest.values(), default=stamp)
        if newest - RESTART * NS <= stamp <= latest + RESTART * NS:
            self._newest[topic] = max(newest, stamp)
            self._reject(topic)
            return
        if stamp < self._rivals.get(topic, [stamp])[-1] - RESTART * NS:
            self._reject(topic)
        taken.astray = None
        rivals = self._rivals.setdefault(topic, [])
        rivals.append(stamp)
        if len(rivals) < SEVERAL:
            return
        if stamp < newest:
            self._begin_again()
        else:  # nothing came for a while
            self._newest[topic] = max(rivals)
            self._settle(topic, astray=False)

    def _begin_again(self) -> None:
        # what goes on where time was has come late
        late = [each for each in self._held if each.stamp > 0 and each.astray is False]
        begun = [each for each in self._held if not (each.stamp > 0 and each.astray is False)]
        begun[0].again = True
        self._held = late + begun
        self._newest = {topic: max(stamps) for topic, stamps in self._rivals.items()}
        for topic in list(self._rivals):
            self._settle(topic, astray=False)

    def _reject(self, topic: str) -> None:
        self._settle(topic, astray=True)

    def _settle(self, topic: str, *, astray: bool) -> None:
        if self._rivals.pop(topic, None):
            for each in self._held:
                if each.topic == topic and each.astray is None:
                    each.astray = astray


class BagClock:
    """ROS time as it was when a message was recorded, for who follows a bag message by message.

    That is the log time, unless the log has another clock than all stamps, as a recorder without use_sim_time has;
    then it is the newest stamp so far.
    """

    def __init__(self) -> None:
        self._logs_ros_time = False
        self._newest_of: dict[str, int] = {}
        self._newest = 0

    def now(self, topic: str, log_time: int, stamp: int) -> int:
        """Return ROS time in ns at a message with this log time and stamp."""
        if stamp > 0:
            self._logs_ros_time = self._logs_ros_time or abs(log_time - stamp) < OTHER_CLOCK * NS
            newest = self._newest_of.get(topic, stamp)
            if stamp < newest - RESTART * NS:  # of the same topic, as another may have another clock
                self._newest_of, newest, self._newest = {}, stamp, stamp
            self._newest_of[topic] = max(newest, stamp)
            self._newest = max(stamp, self._newest)
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
