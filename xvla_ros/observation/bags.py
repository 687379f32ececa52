"""Observations from a bag, built by the same ``ObservationBuilder`` as live ones and without ROS.

A bag knows what came later, so an observation is built for a chosen instant as soon as every required source has got
there: the stamp of each picture of slot 0, or the points of a regular grid. Joints are then interpolated to that very
instant, and the pictures are the newest at or before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.model.data import Observation
from xvla_ros.observation.align import FUTURE_TOLERANCE, NS, OTHER_CLOCK
from xvla_ros.observation.bag_files import BagError, BagMessage, bag_messages, bag_summary
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.cdr import CdrError, peek_stamp, read_joint_state
from xvla_ros.observation.faults import Fault
from xvla_ros.observation.images import COMPRESSED, RAW, ImageError, rgb_of_message
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.schema import Camera

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

IMAGE_TYPES = {RAW: "sensor_msgs/msg/Image", COMPRESSED: "sensor_msgs/msg/CompressedImage"}
JOINT_TYPE = "sensor_msgs/msg/JointState"
RESTART = 1.0  # s by which stamps fall back when a simulation begins again; less is the delay between two topics


def observations(
    path: str | Path,
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

    Only the pictures of observations that are yielded are decoded.

    Args:
        path: the bag; of one that was cut short, every whole message before the cut counts.
        profile: the robot.
        rate: Hz, in the time of the stamps.
        at: stamps, ns, increasing, in the place of pictures and ``rate``: those that a live node answered, say.
        instruction: what to do, in words; None takes the profile's.
        wanted: whether an observation is to be built at a stamp; asked once for each, when it is due.
        commanded: stamp → the joints [J] commanded there, rad or m in policy order, for ``proprio_source: commanded``.
        heard: told of every message of the profile's cameras and joints, with its stamp, once it has been taken in.

    Raises:
        BagError: no bag, topics missing or of another type, a message that cannot be read, a rate that is not positive.
        KinematicsError: the profile's action mode reads tool poses, and its URDFs or Pinocchio cannot be had.
    """
    if rate is not None and not rate > 0.0:
        raise BagError(f"rate is {rate}; expected a positive number of observations a second")
    check_topics(path, profile)
    listener = _Listener(profile.instruction if instruction is None else instruction, wanted, commanded, heard)
    instants = _Given(at) if at is not None else _Grid(rate) if rate else _Frames()
    return _play(path, ObservationBuilder(profile, decode_image), instants, listener)


def check_topics(path: str | Path, profile: Profile) -> None:
    """Check that a bag has the topics a profile requires, each of the right type.

    Raises:
        BagError: naming every topic that is missing or of another type, and what the bag holds.
    """
    found = {topic.name: topic.type for topic in bag_summary(path).topics if topic.count}
    cameras = [profile.cameras.by_name[slot] for slot in profile.cameras.slots]
    wanted = {camera.topic: (IMAGE_TYPES[camera.transport], camera.required) for camera in cameras}
    wanted |= {joint.topic: (JOINT_TYPE, True) for joint in profile.joints.ordered}
    problems = [
        f"{topic} is {found.get(topic, 'missing')}, expected {kind}"
        for topic, (kind, required) in wanted.items()
        if found.get(topic, kind if not required else "") != kind
    ]
    if problems:
        held = ", ".join(f"{topic} ({kind})" for topic, kind in found.items())
        raise BagError(f"{path}: does not fit robot {profile.name}: {'; '.join(problems)}. The bag holds {held}")


def decode_image(serialized: bytes, camera: Camera) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] RGB of a message of a camera, serialized; the same bytes as live, see ``images``.

    Raises:
        ImageError: naming what was found and what is expected.
    """
    kind = IMAGE_TYPES[camera.transport]
    try:
        message: Any = _typestore().deserialize_cdr(serialized, kind)
    except Exception as error:  # rosbags lets through what struct and numpy raise
        raise ImageError(f"not a whole {kind}: {error}") from error
    return rgb_of_message(message, camera)


@cache
def _typestore() -> Typestore:
    from rosbags.typesys import Stores, get_typestore

    # the two image types are the same in every ROS 2 distribution
    return get_typestore(Stores.ROS2_JAZZY)


@dataclass(frozen=True)
class _Listener:
    """What the caller of ``observations`` wants."""

    instruction: str
    wanted: Callable[[int], bool]
    commanded: Callable[[int], NDArray[np.float64] | None]
    heard: Callable[[BagMessage, int], None]


def _play(
    path: str | Path, builder: ObservationBuilder[bytes], instants: _Frames | _Grid | _Given, listener: _Listener
) -> Iterator[Observation | Fault]:
    profile = builder.profile
    cameras: dict[str, list[str]] = {}
    for slot in profile.cameras.slots:
        cameras.setdefault(profile.cameras.by_name[slot].topic, []).append(slot)
    first_slot = profile.cameras.by_name[profile.cameras.slots[0]].topic
    topics = {*cameras, *(joint.topic for joint in profile.joints.ordered)}
    clock, timeout = BagClock(), round(profile.timing.observation_timeout * NS)
    asked: tuple[int, bool] | None = None  # about the instant that is due: whether it is wanted
    for message in bag_messages(path, topics):
        received = message.log_time / NS
        stamp = _feed(builder, cameras.get(message.topic, []), message, received)
        listener.heard(message, stamp)
        now = clock.now(message.log_time, stamp)
        if message.topic == first_slot:
            instants.picture(stamp)
        while (due := instants.due(now)) is not None:
            # asked first: to see whether every source has got there takes long
            if asked is None or asked[0] != due:
                asked = due, listener.wanted(due)
            if asked[1]:
                aligned = builder.aligned_stamp(now, received)
                if (aligned is None or aligned < due) and now - due <= timeout:
                    break
                yield builder.build(
                    now, received, listener.instruction, listener.commanded(due), not_after=due
                )
            instants.done(now - timeout)
            asked = None


def _feed(builder: ObservationBuilder[bytes], cameras: list[str], message: BagMessage, received: float) -> int:
    """Hand a message to the builder as a subscription does; return its stamp."""
    try:
        if cameras:
            stamp = peek_stamp(message.data)
            for camera in cameras:
                builder.add_image(camera, stamp, message.data, received)
        else:
            stamp, names, positions = read_joint_state(message.data)
            builder.add_joints(message.topic, stamp, names, positions, received)
    except CdrError as error:
        raise BagError(f"{message.topic}: message logged at {message.log_time} ns: {error}") from error
    return stamp


class BagClock:
    """ROS time as it was when a message was recorded.

    That is the log time, unless the log has another clock than the stamps, as a recorder without use_sim_time has;
    then it is the newest stamp so far.
    """

    def __init__(self) -> None:
        self._logs_ros_time: bool | None = None
        self._newest: int | None = None

    def now(self, log_time: int, stamp: int) -> int:
        """Return ROS time in ns at a message with this log time and stamp."""
        if self._logs_ros_time is None:
            self._logs_ros_time = abs(log_time - stamp) < OTHER_CLOCK * NS
        if self._logs_ros_time:
            return log_time
        if self._newest is None or stamp > self._newest or stamp < self._newest - RESTART * NS:
            self._newest = stamp
        return self._newest


class _Frames:
    """An observation is wanted at the stamp of every picture of slot 0."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()

    def picture(self, stamp: int) -> None:
        self._waiting.append(stamp)

    def due(self, now: int) -> int | None:
        # a stamp that has not come yet is from before a restart of the clock, or wrong
        while self._waiting and self._waiting[0] > now + FUTURE_TOLERANCE * NS:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def done(self, too_old: int) -> None:
        self._waiting.popleft()


class _Given:
    """An observation is wanted at stamps that are known beforehand."""

    def __init__(self, stamps: Sequence[int]) -> None:
        self._waiting = deque(stamps)

    def picture(self, stamp: int) -> None:
        del stamp

    def due(self, now: int) -> int | None:
        return self._waiting[0] if self._waiting and self._waiting[0] <= now else None

    def done(self, too_old: int) -> None:
        del too_old
        self._waiting.popleft()


class _Grid:
    """An observation is wanted every period, from the first picture of slot 0 on."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._start: int | None = None
        self._count = 0

    def picture(self, stamp: int) -> None:
        if self._start is None:
            self._start, self._count = stamp, 0

    def due(self, now: int) -> int | None:
        if self._start is None:
            return None
        due = self._start + round(self._count * NS / self._rate)
        if due - now > NS / self._rate + RESTART * NS:  # the clock has begun again: the next picture is the first
            self._start = None
            return None
        return due if due <= now else None

    def done(self, too_old: int) -> None:
        # a pause in the bag is one fault, not one for every period of it
        self._count += 1
        if self._start is not None:
            self._count = max(self._count, math.ceil((too_old - self._start) * self._rate / NS))
